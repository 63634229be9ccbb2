//! Silence, the real time of it: how long is too long, and what does not count.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use tokio::time::sleep;

use super::Error;
use super::Part;
use super::RegistryOptions;
use super::tests::BODY;
use super::tests::Server;
use super::tests::digest;
use super::tests::options;
use super::tests::reply;
use super::tests::repository;
use super::tests::tag;
use super::tests::upstream;

/// How long a server may be silent here; innocent answers have no more time than this either.
pub(super) const SILENCE: Duration = Duration::from_secs(2);
/// A pause of a server, in milliseconds, that outlasts every test.
const FOREVER_MS: u64 = 3_600_000;

/// Whether something is so, on a machine that does not stand still meanwhile for anything like [`SILENCE`]: where it does,
/// it is tried again.
pub(super) async fn assert_undisturbed(is_so: impl AsyncFn() -> bool) {
    const TICK: Duration = Duration::from_millis(20);
    loop {
        let longest = Arc::new(Mutex::new(Duration::ZERO));
        let noted = longest.clone();
        let metronome = tokio::spawn(async move {
            loop {
                let began = Instant::now();
                sleep(TICK).await;
                let mut longest = noted.lock().unwrap();
                *longest = began.elapsed().max(*longest);
            }
        });
        let is_so = is_so().await;
        sleep(2 * TICK).await;
        metronome.abort();
        if is_so {
            return;
        }
        let longest = *longest.lock().unwrap();
        assert!(longest > SILENCE / 4, "standing still for {longest:?} is no excuse");
    }
}

fn impatient(mut options: RegistryOptions) -> RegistryOptions {
    options.read_timeout = SILENCE;
    options
}

#[tokio::test]
async fn silence_counts_only_while_waiting() {
    let head = "HTTP/1.1 200 X\r\ncontent-length: 20\r\n\r\n";
    /// The chunks of a body that a reader waits for before each.
    async fn chunks(server: &Server, wait_ms: u64) -> Result<Vec<Option<Bytes>>, Error> {
        let upstream = upstream(impatient(options(&[&server.address])));
        let mut body = upstream.get_blob(&repository(), &digest(), Part::whole()).await?;
        let mut chunks = vec![body.chunk().await?];
        sleep(Duration::from_millis(wait_ms)).await;
        for _ in 0..2 {
            chunks.push(body.chunk().await?);
        }
        Ok(chunks)
    }
    let half = Some(Bytes::from_static(BODY.as_bytes()));
    let late = Server::start(move |_| vec![(0, format!("{head}{BODY}")), (2500, BODY.to_owned())]).await;
    let silent = Server::start(move |_| vec![(0, format!("{head}{BODY}")), (FOREVER_MS, BODY.to_owned())]).await;
    assert_undisturbed(async || {
        let (slow_reader, silent_server) = tokio::join!(chunks(&late, 2600), chunks(&silent, 0));
        slow_reader == Ok(vec![half.clone(), half.clone(), None])
            && silent_server == Err(Error::TimedOut { what: "body" })
    })
    .await;
}

#[tokio::test]
async fn a_silent_head_times_out_and_the_next_endpoint_is_asked() {
    assert_undisturbed(async || {
        let silent = Server::start(|_| vec![(FOREVER_MS, String::new())]).await;
        let good = Server::start(|_| reply(200, "", "{}")).await;
        let alone = async {
            let upstream = upstream(impatient(options(&[&silent.address])));
            let error = upstream.get_manifest(&repository(), &tag()).await.unwrap_err();
            error == Error::TimedOut { what: "response head" }
        };
        let with_another = async {
            let upstream = upstream(impatient(options(&[&silent.address, &good.address])));
            let first = upstream.get_manifest(&repository(), &tag()).await;
            first.is_ok() && upstream.get_manifest(&repository(), &tag()).await.is_ok()
        };
        let answered = tokio::join!(alone, with_another);
        // The failed endpoint is passed over.
        answered == (true, true) && (silent.count("GET"), good.count("GET")) == (2, 2)
    })
    .await;
}
