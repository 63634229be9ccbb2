//! Downloads that were given up half-way, kept for whoever asks again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use super::Timestamp;
use super::catalog::Catalog;
use super::engine::Engine;
use super::engine::Parked;
use super::engine::SpoolFile;
use super::engine::SpoolStem;
use super::space::Reservation;
use super::space::Space;
use super::spool::Rest;
use crate::oci::Digest;
use crate::oci::Repository;

/// Most parked downloads; the oldest gives way.
const MAX_PARKED: usize = 32;

pub(super) struct Parking {
    engine: Engine,
    lots: Mutex<HashMap<SpoolStem, Lot>>,
}

struct Lot {
    prefix_bytes: u64,
    since: Timestamp,
    /// What is parked takes its room.
    reservation: Reservation,
}

impl Parking {
    /// Takes stock of what an earlier run left, as far as there is room.
    pub(super) fn open(engine: &Engine, space: &Arc<Space>, catalog: &Catalog) -> std::io::Result<Self> {
        let parking = Self { engine: engine.clone(), lots: Mutex::default() };
        for parked in engine.take_stock(|digest| catalog.size_bytes(digest).is_some())? {
            match space.reserve(parked.prefix_bytes) {
                Ok(mut reservation) => {
                    reservation.wrote(parked.prefix_bytes);
                    parking.keep(parked, reservation);
                }
                Err(_) => engine.discard(&parked.stem),
            }
        }
        Ok(parking)
    }

    /// How much of this content is parked for this repository.
    pub(super) fn prefix_bytes(&self, digest: &Digest, owner: &Repository) -> Option<u64> {
        self.lots().get(&SpoolStem::new(digest, owner)).map(|lot| lot.prefix_bytes)
    }

    /// Keeps what came of a download. Blocks.
    pub(super) fn park(&self, digest: &Digest, owner: &Repository, rest: Rest) {
        let Rest { file, prefix_bytes, mut reservation } = rest;
        match self.engine.park(file, &SpoolStem::new(digest, owner), prefix_bytes) {
            Ok(None) => {}
            Ok(Some(parked)) => {
                tracing::info!(%digest, repository = %owner, prefix_bytes, "a download is parked");
                reservation.shrink(prefix_bytes);
                self.keep(parked, reservation);
            }
            Err(error) => tracing::warn!(%digest, %error, "a download could not be parked"),
        }
    }

    /// Takes what is parked: the file, how much is in it, and its room. Blocks.
    pub(super) fn take(&self, digest: &Digest, owner: &Repository) -> Option<(SpoolFile, u64, Reservation)> {
        let lot = self.lots().remove(&SpoolStem::new(digest, owner))?;
        match self.engine.unpark(digest, owner, lot.prefix_bytes) {
            Ok(file) => Some((file?, lot.prefix_bytes, lot.reservation)),
            Err(error) => {
                tracing::warn!(%digest, %error, "a parked download could not be taken up");
                None
            }
        }
    }

    /// Gives up what is parked of this content for this repository. Blocks.
    pub(super) fn discard(&self, digest: &Digest, owner: &Repository) {
        let stem = SpoolStem::new(digest, owner);
        if self.lots().remove(&stem).is_some() {
            self.engine.discard(&stem);
        }
    }

    /// Gives all the room back; `false` when nothing was parked. Blocks.
    pub(super) fn clear(&self) -> bool {
        let lots = std::mem::take(&mut *self.lots());
        lots.keys().for_each(|stem| self.engine.discard(stem));
        !lots.is_empty()
    }

    fn keep(&self, parked: Parked, reservation: Reservation) {
        let lot = Lot { prefix_bytes: parked.prefix_bytes, since: parked.modified_at, reservation };
        let mut lots = self.lots();
        lots.insert(parked.stem, lot);
        if lots.len() > MAX_PARKED
            && let Some(oldest) = lots.iter().min_by_key(|(_, lot)| lot.since).map(|(stem, _)| stem.clone())
        {
            lots.remove(&oldest);
            self.engine.discard(&oldest);
        }
    }

    fn lots(&self) -> MutexGuard<'_, HashMap<SpoolStem, Lot>> {
        self.lots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
