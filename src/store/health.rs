//! What the disk is able to do: noticed where work fails, tried again until it works.

use std::io;
use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::watch;

use super::Inner;
use super::blocking;
use crate::metrics::Metrics;

/// How often a disk in trouble is tried.
const RETRY_EVERY: Duration = Duration::from_secs(2);
/// How often one that seems well is looked at, which writes nothing.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The quarantine is looked at after so many looks: another process may have put something there, or it is old enough.
const LOOKS_PER_SWEEP: u32 = 60;

/// What is wrong with the disk; `None` while new content can be kept.
pub type Trouble = Option<Arc<str>>;

/// How the disk does.
#[derive(Debug)]
pub(super) struct Health {
    trouble: watch::Sender<Trouble>,
    /// The disk lets go of nothing: trying again for every blob would fill the log.
    is_stuck: AtomicBool,
    doubts: Notify,
    metrics: Metrics,
}

impl Health {
    pub(super) fn new(metrics: Metrics) -> Self {
        metrics.store_writable(true);
        Self { trouble: watch::Sender::new(None), is_stuck: AtomicBool::new(false), doubts: Notify::new(), metrics }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Trouble> {
        self.trouble.subscribe()
    }

    /// Writing failed. Counts errors that are the disk's, and not those of a process that is out of something.
    pub(super) fn write_failed(&self, error: &io::Error) {
        if is_of_disk(error) {
            self.metrics.disk_error("write");
            self.set(Some(format!("the disk does not take new content: {error}").into()));
        }
    }

    /// Removing failed.
    pub(super) fn remove_failed(&self, error: &io::Error) {
        if is_of_disk(error) {
            self.metrics.disk_error("remove");
            self.is_stuck.store(true, Ordering::Relaxed);
            self.set(Some(format!("the disk does not let go of content: {error}").into()));
        }
    }

    /// Something did not fit: a look tells whether that is the disk's fault.
    pub(super) fn doubt(&self) {
        self.doubts.notify_one();
    }

    async fn doubted(&self) {
        self.doubts.notified().await;
    }

    /// Whether removing failed, and has not been seen to work since.
    pub(super) fn is_stuck(&self) -> bool {
        self.is_stuck.load(Ordering::Relaxed)
    }

    fn set(&self, trouble: Trouble) {
        let is_news = self.trouble.send_if_modified(|known| {
            let is_news = *known != trouble;
            known.clone_from(&trouble);
            is_news
        });
        if !is_news {
            return;
        }
        self.metrics.store_writable(trouble.is_none());
        match trouble {
            Some(trouble) => tracing::error!(%trouble, "content is passed through, not kept, until the disk recovers"),
            None => {
                self.is_stuck.store(false, Ordering::Relaxed);
                tracing::info!("the disk takes content again");
            }
        }
    }
}

/// Whether an error says something about the disk, rather than about one name or about this process.
pub(super) fn is_of_disk(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let is_ours = |errno: i32| {
        [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::INTR, Errno::AGAIN].map(Errno::raw_os_error).contains(&errno)
    };
    error.kind() != io::ErrorKind::NotFound && error.raw_os_error().is_some_and(|errno| !is_ours(errno))
}

/// Looks at the disk until the store is gone.
pub(super) async fn watch(store: Weak<Inner>) {
    // Not the store itself: whoever closes it and opens it again must not wait for a look.
    let Some(health) = store.upgrade().map(|inner| inner.space.health().clone()) else { return };
    let mut trouble = health.subscribe();
    let mut looks: u32 = 0;
    loop {
        let is_in_trouble = trouble.borrow_and_update().is_some();
        if is_in_trouble {
            tokio::time::sleep(RETRY_EVERY).await;
        } else {
            tokio::select! {
                changed = trouble.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                () = health.doubted() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        let Some(inner) = store.upgrade() else { return };
        let looker = inner.clone();
        looks = looks.wrapping_add(1);
        let found = blocking(move || {
            if looks.is_multiple_of(LOOKS_PER_SWEEP) {
                looker.quarantine.bound(&looker.engine, &looker.space);
            }
            look(&looker, is_in_trouble)
        })
        .await;
        let has_recovered = is_in_trouble && found.is_none();
        health.set(found);
        if has_recovered {
            inner.space.press();
        }
    }
}

/// What is wrong now. A disk that was in trouble has to prove that it takes what is written.
fn look(inner: &Inner, was_in_trouble: bool) -> Trouble {
    if inner.engine.is_read_only() {
        return Some("the file system is mounted read-only".into());
    }
    if let Some((short, free)) = inner.space.shortage() {
        return Some(format!("the disk is full: {free} bytes are free, and `min_free` wants {short} more").into());
    }
    let probed = if was_in_trouble { inner.engine.probe() } else { Ok(()) };
    probed.err().map(|error| format!("the disk does not take new content: {error}").into())
}
