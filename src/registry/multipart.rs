//! Several parts of one blob in one body: `multipart/byteranges` (RFC 9110 section 14.6, RFC 2046 section 5.1).

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};

use bytes::Bytes;

use super::body::Pieces;
use crate::oci::{ByteRange, ContentRange};
use crate::piece::Piece;

/// A body of parts, in the order given. Knows its size before anything is read; reads one part after the other.
pub(super) struct Multipart<R> {
    boundary: String,
    parts: VecDeque<Section<R>>,
    /// The part whose head went out, and how many of its bytes did not.
    open: Option<(R, u64)>,
    closing: Option<Bytes>,
    size_bytes: u64,
}

struct Section<R> {
    head: Bytes,
    size_bytes: u64,
    reader: R,
}

impl<R: Pieces> Multipart<R> {
    /// Parts of content of `total_bytes` in all, each with a reader of exactly these bytes.
    pub(super) fn new(total_bytes: u64, parts: Vec<(ByteRange, R)>) -> Self {
        Self::with_boundary(new_boundary(), total_bytes, parts)
    }

    fn with_boundary(boundary: String, total_bytes: u64, parts: Vec<(ByteRange, R)>) -> Self {
        let closing = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        let section = |(place, (range, reader)): (usize, (ByteRange, R))| Section {
            head: part_head(&boundary, place == 0, range, total_bytes),
            size_bytes: range.size_bytes(),
            reader,
        };
        let parts: VecDeque<_> = parts.into_iter().enumerate().map(section).collect();
        let size_bytes = parts.iter().map(|part| part.head.len() as u64 + part.size_bytes).sum::<u64>();
        let size_bytes = size_bytes + closing.len() as u64;
        Self { boundary, parts, open: None, closing: Some(closing), size_bytes }
    }

    /// The length of the whole body: heads, parts and the closing line.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// What stands between the parts; letters and digits only, because not all clients read a quoted one.
    pub(super) fn boundary(&self) -> &str {
        &self.boundary
    }

    /// Nothing more comes: the body stays shorter than promised.
    fn give_up(&mut self) {
        self.open = None;
        self.parts.clear();
        self.closing = None;
    }
}

impl<R: Pieces> Pieces for Multipart<R> {
    type Error = R::Error;

    async fn next_piece(&mut self) -> Option<Result<Piece, R::Error>> {
        if let Some((reader, rest_bytes)) = &mut self.open {
            match reader.next_piece().await {
                Some(Ok(mut piece)) => {
                    piece.truncate(*rest_bytes);
                    *rest_bytes -= piece.size_bytes();
                    if *rest_bytes == 0 {
                        self.open = None;
                    }
                    return Some(Ok(piece));
                }
                // Also a part that ends early: whatever followed would stand in its place.
                failed => {
                    self.give_up();
                    return failed;
                }
            }
        }
        match self.parts.pop_front() {
            Some(part) => {
                self.open = Some((part.reader, part.size_bytes));
                Some(Ok(part.head.into()))
            }
            None => self.closing.take().map(|closing| Ok(closing.into())),
        }
    }
}

fn part_head(boundary: &str, is_first: bool, range: ByteRange, total_bytes: u64) -> Bytes {
    let line_end = if is_first { "" } else { "\r\n" };
    let content_range = ContentRange { range, total_bytes: Some(total_bytes) };
    let head = format!(
        "{line_end}--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: {content_range}\r\n\r\n"
    );
    head.into()
}

/// Made up anew for every answer, so that no content can be prepared to contain it.
fn new_boundary() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pieces of some content, then perhaps a failure.
    struct Script(VecDeque<Result<Bytes, &'static str>>);

    impl Pieces for Script {
        type Error = &'static str;

        async fn next_piece(&mut self) -> Option<Result<Piece, &'static str>> {
            self.0.pop_front().map(|next| next.map(Piece::Bytes))
        }
    }

    fn reads(content: &[u8], range: ByteRange, chunk_bytes: usize) -> Script {
        let (start, end) = (usize::try_from(range.start()).unwrap(), usize::try_from(range.end()).unwrap());
        Script(content[start..end].chunks(chunk_bytes).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect())
    }

    fn drain(mut body: Multipart<Script>) -> (Vec<u8>, Option<&'static str>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut bytes = Vec::new();
            loop {
                match body.next_piece().await {
                    Some(Ok(piece)) => bytes.extend_from_slice(&piece.into_bytes().unwrap()),
                    Some(Err(error)) => {
                        assert!(body.next_piece().await.is_none(), "nothing follows a failure");
                        return (bytes, Some(error));
                    }
                    None => return (bytes, None),
                }
            }
        })
    }

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start..end).unwrap()
    }

    #[test]
    fn looks_as_the_rfc_shows_it() {
        let content = b"0123456789";
        let ranges = [range(7, 10), range(0, 2)];
        let parts = ranges.iter().map(|&range| (range, reads(content, range, 2))).collect();
        let (bytes, failure) = drain(Multipart::with_boundary("B".to_owned(), 10, parts));
        let expected = "--B\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes 7-9/10\r\n\r\n789\r\n\
                        --B\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes 0-1/10\r\n\r\n01\r\n\
                        --B--\r\n";
        assert_eq!((String::from_utf8(bytes).unwrap().as_str(), failure), (expected, None));
    }

    #[test]
    fn boundaries_are_plain_and_new() {
        let (first, second) = (new_boundary(), new_boundary());
        assert_ne!(first, second);
        assert!(first.len() <= 70 && first.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{first}");
    }

    #[test]
    fn a_part_that_fails_or_ends_early_ends_everything() {
        for (last, expected) in [(Some(Err("cut")), Some("cut")), (None, None)] {
            let short = Script([Some(Ok(Bytes::from_static(b"ab"))), last].into_iter().flatten().collect());
            let parts = vec![(range(0, 5), short), (range(6, 8), Script([Ok(Bytes::from_static(b"gh"))].into()))];
            let body = Multipart::new(10, parts);
            let size_bytes = body.size_bytes();
            let (bytes, failure) = drain(body);
            assert_eq!(failure, expected);
            assert!(bytes.ends_with(b"\r\n\r\nab") && (bytes.len() as u64) < size_bytes);
        }
    }

    #[test]
    fn a_part_is_never_longer_than_it_says() {
        let long = Script([Ok(Bytes::from_static(b"abcdef"))].into());
        let body = Multipart::new(10, vec![(range(0, 3), long)]);
        let size_bytes = body.size_bytes();
        let (bytes, failure) = drain(body);
        assert_eq!((bytes.len() as u64, failure), (size_bytes, None));
    }

    proptest! {
        #[test]
        fn the_declared_length_is_the_length(
            content in prop::collection::vec(any::<u8>(), 1..2000),
            places in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..16),
            chunk_bytes in 1usize..300,
        ) {
            let ranges = places.iter().map(|(from, count)| {
                let from = from.index(content.len());
                let count = count.index(content.len() - from) + 1;
                range(from as u64, (from + count) as u64)
            });
            let parts: Vec<_> = ranges.map(|range| (range, reads(&content, range, chunk_bytes))).collect();
            let body = Multipart::new(content.len() as u64, parts);
            let size_bytes = body.size_bytes();
            let (bytes, failure) = drain(body);
            prop_assert_eq!(failure, None);
            prop_assert_eq!(bytes.len() as u64, size_bytes);
        }
    }
}
