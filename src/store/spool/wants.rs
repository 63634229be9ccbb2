//! Who reads a spool, and who waits for bytes that the download does not bring next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::sync::Notify;

/// A reader ahead of the first absent byte, where it last had to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The byte it needs next.
    pub position: u64,
    /// Where it stops; `None`: at the end of the content.
    pub end: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Wants {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    readers: Mutex<Readers>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Readers {
    next: u64,
    /// `None`: it has not had to wait, or only for the next bytes in order.
    ahead: BTreeMap<u64, Option<Want>>,
}

/// One reader's place in the list; leaves it on drop.
#[derive(Debug)]
pub(super) struct Ticket {
    inner: Arc<Inner>,
    number: u64,
    wants: bool,
}

impl Wants {
    /// A new reader.
    pub(super) fn ticket(&self) -> Ticket {
        let mut readers = self.inner.readers();
        let number = readers.next;
        readers.next += 1;
        readers.ahead.insert(number, None);
        drop(readers);
        self.inner.changed.notify_one();
        Ticket { inner: self.inner.clone(), number, wants: false }
    }

    pub(super) fn ahead(&self) -> Vec<Want> {
        self.inner.readers().ahead.values().filter_map(|want| *want).collect()
    }

    pub(super) fn readers(&self) -> usize {
        self.inner.readers().ahead.len()
    }

    pub(super) async fn changed(&self) {
        self.inner.changed.notified().await;
    }
}

impl Inner {
    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// It waits ahead, or no more.
    pub(super) fn set(&mut self, want: Option<Want>) {
        if want.is_none() && !self.wants {
            return;
        }
        self.wants = want.is_some();
        let before = self.inner.readers().ahead.insert(self.number, want);
        if want.is_some() && before != Some(want) {
            self.inner.changed.notify_one();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.inner.readers().ahead.remove(&self.number);
        self.inner.changed.notify_one();
    }
}
