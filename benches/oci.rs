//! The ground layer's hot steps: digests, and reading names and ranges.

use divan::Bencher;
use divan::counter::BytesCount;
use forebay::oci::Algorithm;
use forebay::oci::Digest;
use forebay::oci::RangeHeader;
use forebay::oci::RepositoryName;

fn main() {
    divan::main();
}

const BLOCK_BYTES: usize = 1024 * 1024;
const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[divan::bench(args = [Algorithm::Sha256, Algorithm::Sha512])]
fn hash_a_mebibyte(bencher: Bencher<'_, '_>, algorithm: Algorithm) {
    let block = vec![7; BLOCK_BYTES];
    bencher.counter(BytesCount::new(BLOCK_BYTES)).bench_local(|| Digest::of(algorithm, divan::black_box(&block)));
}

#[divan::bench]
fn parse_digest() -> Option<Digest> {
    divan::black_box(DIGEST).parse().ok()
}

#[divan::bench]
fn print_digest(bencher: Bencher<'_, '_>) {
    let digest = Digest::of(Algorithm::Sha256, b"");
    bencher.bench_local(|| divan::black_box(&digest).to_string());
}

#[divan::bench]
fn parse_repository() -> Option<RepositoryName> {
    divan::black_box("library/some-image.with_parts").parse().ok()
}

#[divan::bench]
fn parse_range() -> Option<RangeHeader> {
    RangeHeader::parse(divan::black_box("bytes=8388608-16777215"))
}
