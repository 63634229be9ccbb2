//! A blob's bytes for one client, wherever they come from, and where it goes on when that place fails.

use crate::oci::ByteRange;
use crate::oci::Digest;
use crate::piece::Piece;
use crate::store::Growing;
use crate::store::Reader;
use crate::store::Store;
use crate::upstream::Part;

use super::ReadError;
use super::passthrough::PassThrough;
use super::relay::Relay;
use super::relay::RelayReader;

/// Reads a blob, in order.
pub struct BlobReader(Source);

enum Source {
    Stored { reader: Reader, store: Store, digest: Digest },
    Growing(Box<Following>),
    Relayed(RelayReader),
    Upstream(Box<PassThrough>),
}

/// A reader of a download, with what it needs to go on without it.
struct Following {
    reader: Reader,
    growing: Growing,
    alone: Option<Box<PassThrough>>,
    /// What is still to come; the whole is verified, a part is not.
    part: Part,
    is_whole: bool,
}

impl BlobReader {
    pub(super) fn stored(reader: Reader, store: Store, digest: Digest) -> Self {
        Self(Source::Stored { reader, store, digest })
    }

    /// Of one part of a download, or of the whole.
    pub(super) fn growing(growing: Growing, part: Option<ByteRange>, alone: Box<PassThrough>) -> Self {
        let reader = growing.read(part);
        let is_whole = part.is_none();
        let part = part.map_or(Part::whole(), |part| Part { start: part.start(), end: Some(part.end()) });
        Self(Source::Growing(Box::new(Following { reader, growing, alone: Some(alone), part, is_whole })))
    }

    /// Of the whole of a stream that is shared, while its beginning is there; a part comes alone.
    pub(super) fn relayed(relay: &Relay, part: Option<ByteRange>, mut alone: Box<PassThrough>) -> Self {
        match part {
            Some(part) => {
                alone.select(part);
                Self(Source::Upstream(alone))
            }
            None => Self(match relay.reader(alone) {
                Ok(reader) => Source::Relayed(reader),
                Err(alone) => Source::Upstream(alone),
            }),
        }
    }

    /// The next bytes; `None` at the end. After an error the answer must be cut before its promised length.
    pub async fn next(&mut self) -> Option<Result<Piece, ReadError>> {
        loop {
            match &mut self.0 {
                Source::Growing(following) => match following.next().await {
                    Some(Err(ReadError::Unkept)) => match Box::pin(following.turn_away()).await {
                        Ok(alone) => self.0 = Source::Upstream(alone),
                        Err(error) => return Some(Err(error)),
                    },
                    next => return next,
                },
                Source::Stored { reader, store, digest } => {
                    let next = reader.next().await;
                    if let Some(Err(error)) = &next {
                        tracing::error!(%digest, %error, "stored content cannot be read; it is hashed before it is served again");
                        store.distrust(digest);
                    }
                    return next;
                }
                Source::Relayed(reader) => return reader.next().await.map(|next| next.map(Piece::Bytes)),
                Source::Upstream(alone) => return alone.next().await.map(|next| next.map(Piece::Bytes)),
            }
        }
    }
}

impl Following {
    async fn next(&mut self) -> Option<Result<Piece, ReadError>> {
        let next = self.reader.next().await;
        if let Some(Ok(piece)) = &next {
            self.part.start += piece.size_bytes();
        }
        next
    }

    /// Our disk cannot take the download: hashes what the reader had, so that the whole is still verified, and turns to
    /// the upstream for the rest.
    async fn turn_away(&mut self) -> Result<Box<PassThrough>, ReadError> {
        let mut alone = self.alone.take().ok_or(ReadError::Unkept)?;
        let hasher = match self.is_whole {
            true => {
                let hashed = self.growing.hash_prefix(self.part.start).await;
                Some(hashed.map_err(|error| ReadError::Disk(error.to_string().into()))?)
            }
            false => None,
        };
        alone.go_on(self.part, hasher);
        Ok(alone)
    }
}
