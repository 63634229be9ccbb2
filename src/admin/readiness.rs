//! Whether the process wants requests.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A shared switch: ready, or not ready with a reason. Starts as not ready, `starting`. Cheap to clone.
///
/// Ready may be degraded: requests are welcome, but something does not work, such as keeping new content.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    not_ready: Option<String>,
    degraded: Option<String>,
}

impl Readiness {
    /// Not ready: `starting`.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State { not_ready: Some("starting".to_owned()), degraded: None })))
    }

    /// Requests are welcome from now on.
    pub fn set_ready(&self) {
        self.set(None);
    }

    /// Requests should go elsewhere; `reason` is what `/readyz` says.
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    /// Why not, or `None` when ready.
    pub fn reason(&self) -> Option<String> {
        self.state().not_ready.clone()
    }

    /// Something does not work, or all works again (`None`). It does not keep requests away.
    pub fn set_degraded(&self, problem: Option<String>) {
        self.state().degraded = problem;
    }

    /// What does not work, if anything.
    pub fn degraded(&self) -> Option<String> {
        self.state().degraded.clone()
    }

    fn set(&self, reason: Option<String>) {
        self.state().not_ready = reason;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}
