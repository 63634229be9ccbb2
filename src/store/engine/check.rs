//! Hashing what is stored, and leaving the page cache as it was: what others keep warm stays, what only we read goes.

use std::fs::File;
use std::io;
use std::io::IoSliceMut;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;

use rustix::fs::Advice;
use rustix::io::ReadWriteFlags;

use crate::oci::Digest;
use crate::oci::Hasher;
use crate::oci::Mismatch;
use crate::oci::Verified;

/// What one step reads at most.
const PIECE_BYTES: usize = 1024 * 1024;

/// The hashing of one file, in steps.
#[derive(Debug)]
pub(in crate::store) struct Check {
    wanted: Digest,
    hasher: Hasher,
    buffer: Box<[u8]>,
}

impl Check {
    /// Begins. The file should be an open of its own: how it is read is advised to the system.
    pub(in crate::store) fn new(wanted: &Digest, file: &File) -> Self {
        // Nothing is read ahead that would have to be let go of.
        let _ = rustix::fs::fadvise(file, 0, None, Advice::Random);
        Self {
            wanted: *wanted,
            hasher: Hasher::new(wanted.algorithm()),
            buffer: vec![0; PIECE_BYTES].into_boxed_slice(),
        }
    }

    /// Hashes the next piece: how many bytes; 0 at the end. Blocks.
    pub(in crate::store) fn step(&mut self, file: &File) -> io::Result<usize> {
        let position = self.hasher.size_bytes();
        let cached = {
            let mut slices = [IoSliceMut::new(&mut self.buffer)];
            rustix::io::preadv2(file, &mut slices, position, ReadWriteFlags::NOWAIT)
        };
        let size_bytes = match cached {
            Ok(size_bytes) if size_bytes > 0 => size_bytes,
            _ => self.read_cold(file, position)?,
        };
        self.hasher.update(&self.buffer[..size_bytes]);
        Ok(size_bytes)
    }

    /// Compares what all steps have hashed.
    pub(in crate::store) fn finish(self) -> Result<Verified, Mismatch> {
        self.hasher.verify(&self.wanted)
    }

    fn read_cold(&mut self, file: &File, position: u64) -> io::Result<usize> {
        let size_bytes = loop {
            match file.read_at(&mut self.buffer, position) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if let Some(length) = NonZeroU64::new(size_bytes as u64) {
            let _ = rustix::fs::fadvise(file, position, Some(length), Advice::DontNeed);
        }
        Ok(size_bytes)
    }
}

/// Hashes a whole file. Blocks.
pub(in crate::store) fn check(wanted: &Digest, file: &File) -> io::Result<Result<Verified, Mismatch>> {
    let mut check = Check::new(wanted, file);
    while check.step(file)? > 0 {}
    Ok(check.finish())
}
