//! Whether the process wants requests.

use std::sync::{Arc, Mutex, PoisonError};

/// A shared switch: ready, or not ready with a reason. Starts as not ready, `starting`. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<Mutex<Option<String>>>);

impl Readiness {
    /// Not ready: `starting`.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Some("starting".to_owned()))))
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, reason: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}
