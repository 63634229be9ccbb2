//! What cannot be kept: streamed from the upstream for one client, still verified, resumed where it breaks, in bounded
//! memory.

use backon::BackoffBuilder as _;
use backon::ExponentialBackoff;
use backon::ExponentialBuilder;
use bytes::Bytes;

use crate::oci::ByteRange;
use crate::oci::Digest;
use crate::oci::Hasher;
use crate::oci::Repository;
use crate::upstream;
use crate::upstream::BlobBody;
use crate::upstream::Part;
use crate::upstream::Upstream;

use super::ReadError;

/// A stream that broke is taken up again that often in a row without news.
const MAX_RESUMES: usize = 3;

/// One client's stream. Asks upstream at the first read.
pub(super) struct PassThrough {
    upstream: Upstream,
    repository: Repository,
    digest: Digest,
    /// What is still to come.
    part: Part,
    /// Of the whole content only: its client verifies what it puts together of parts.
    hasher: Option<Hasher>,
    body: Option<Box<BlobBody>>,
    /// What is to be let go by of an answer that starts earlier than asked for.
    skip_bytes: u64,
    /// The last chunk, held back until the next one, or the verdict, is there.
    held: Bytes,
    delays: ExponentialBackoff,
    has_ended: bool,
}

impl PassThrough {
    /// Of the whole content; an answer with it may be open already.
    pub(super) fn new(upstream: Upstream, repository: Repository, digest: Digest, open: Option<BlobBody>) -> Self {
        Self {
            upstream,
            repository,
            digest,
            part: Part::whole(),
            hasher: Some(Hasher::new(digest.algorithm())),
            body: open.map(Box::new),
            skip_bytes: 0,
            held: Bytes::new(),
            delays: resume_delays(),
            has_ended: false,
        }
    }

    /// Reads only this part.
    pub(super) fn select(&mut self, range: ByteRange) {
        self.go_on(Part { start: range.start(), end: Some(range.end()) }, None);
    }

    /// Goes on in the middle, where another reader had to stop. The hash is of all before, when the whole is read.
    pub(super) fn go_on(&mut self, part: Part, hasher: Option<Hasher>) {
        (self.part, self.hasher, self.body) = (part, hasher, None);
    }

    pub(super) async fn next(&mut self) -> Option<Result<Bytes, ReadError>> {
        if self.has_ended {
            return None;
        }
        let next = self.try_next().await.transpose();
        self.has_ended = !matches!(next, Some(Ok(_)));
        next
    }

    async fn try_next(&mut self) -> Result<Option<Bytes>, ReadError> {
        while self.part.end.is_none_or(|end| self.part.start < end) {
            match self.chunk().await {
                Ok(None) => break,
                Ok(Some(chunk)) => {
                    self.delays = resume_delays();
                    let ready = std::mem::replace(&mut self.held, chunk);
                    if !ready.is_empty() {
                        return Ok(Some(ready));
                    }
                }
                Err(error) => {
                    self.body = None;
                    let delay = self.delays.next().filter(|_| error.is_transient());
                    let Some(delay) = delay else { return Err(failed(&error)) };
                    tokio::time::sleep(delay).await;
                }
            }
        }
        let last = std::mem::take(&mut self.held);
        if let Some(hasher) = self.hasher.take() {
            hasher.verify(&self.digest).map_err(|mismatch| {
                tracing::error!(repository = %self.repository, %mismatch, "the upstream sent wrong content");
                self.body.iter().for_each(|body| body.source().distrust());
                ReadError::WrongContent
            })?;
        }
        Ok((!last.is_empty()).then_some(last))
    }

    /// The next bytes of the part that are not empty, hashed.
    async fn chunk(&mut self) -> Result<Option<Bytes>, upstream::Error> {
        loop {
            if self.body.is_none() {
                let body = self.upstream.get_blob(&self.repository, &self.digest, self.part).await?;
                let skip_bytes = self.part.start.checked_sub(body.start());
                self.skip_bytes = skip_bytes.ok_or_else(|| upstream::Error::Protocol {
                    reason: "the registry sent another part than asked for".to_owned(),
                })?;
                self.body = Some(Box::new(body));
            }
            let Some(body) = &mut self.body else { continue };
            let Some(mut chunk) = body.chunk().await? else { return Ok(None) };
            let skipped = usize::try_from(self.skip_bytes).unwrap_or(usize::MAX).min(chunk.len());
            self.skip_bytes -= skipped as u64;
            let mut chunk = chunk.split_off(skipped);
            let left = self.part.end.map_or(u64::MAX, |end| end - self.part.start);
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&chunk);
            }
            self.part.start += chunk.len() as u64;
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }
}

fn failed(error: &upstream::Error) -> ReadError {
    ReadError::Failed(error.to_string().into())
}

fn resume_delays() -> ExponentialBackoff {
    ExponentialBuilder::new().with_max_times(MAX_RESUMES).with_jitter().build()
}
