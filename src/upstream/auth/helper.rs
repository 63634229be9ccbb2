//! Credential helpers: `docker-credential-*` programs (docker/docker-credential-helpers), one process at a time, with a time
//! limit; what one said is kept for some minutes, and asked for again when a registry refuses it.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex as SyncMutex;
use std::sync::PoisonError;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Child;
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio::time::timeout;

use super::login::Account;
use crate::oci::Registry;
use crate::upstream::Secret;
use crate::upstream::error::Error;

const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_OUTPUT_BYTES: u64 = 64 * 1024;
/// How long an answer is used. Helpers keep their own tokens and say nothing of their ends.
const KEPT_FOR: Duration = Duration::from_secs(10 * 60);
/// An answer that a registry refused is asked for again, but not more often.
const PAUSE: Duration = Duration::from_secs(10);
/// The user name of an answer whose secret is a refresh token.
const TOKEN_USER: &str = "<token>";
/// What a helper writes when it does not have any.
const NOT_FOUND: &str = "credentials not found";

#[derive(Debug)]
pub(super) struct Helper {
    registry: Registry,
    program: String,
    server: String,
    /// Held while a process runs: all who come wait for what it says.
    running: Mutex<()>,
    kept: SyncMutex<Option<Kept>>,
}

#[derive(Clone, Debug)]
struct Kept {
    /// `None`: the helper has none, so we are nobody.
    account: Option<Arc<Account>>,
    got_at: Instant,
    was_refused: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Output {
    username: String,
    secret: String,
}

impl Helper {
    pub(super) fn new(registry: Registry, program: String, server: String) -> Self {
        Self { registry, program, server, running: Mutex::default(), kept: SyncMutex::default() }
    }

    pub(super) async fn account(&self) -> Result<Option<Arc<Account>>, Error> {
        if let Some(usable) = self.usable() {
            return Ok(usable);
        }
        let _running = self.running.lock().await;
        if let Some(usable) = self.usable() {
            return Ok(usable);
        }
        let got_at = Instant::now();
        let account = self.ask().await?;
        let kept = account.clone().map(|account| Arc::new(Account { is_kept: true, ..account }));
        *self.lock() = Some(Kept { account: kept, got_at, was_refused: false });
        Ok(account.map(Arc::new))
    }

    /// What was said last, however long ago.
    pub(super) fn kept(&self) -> Option<Arc<Account>> {
        self.lock().as_ref()?.account.clone()
    }

    pub(super) fn forget(&self, refused: &Account) {
        if let Some(kept) = &mut *self.lock()
            && kept.account.as_ref().is_some_and(|account| account.proof == refused.proof)
        {
            kept.was_refused = true;
        }
    }

    fn usable(&self) -> Option<Option<Arc<Account>>> {
        let kept = self.lock().clone()?;
        let age = kept.got_at.elapsed();
        match kept.was_refused {
            false => (age < KEPT_FOR).then_some(kept.account),
            // As the helper's last word: it is not asked again for every request that is refused.
            true => (age < PAUSE).then(|| {
                let last_word =
                    |account: Arc<Account>| Arc::new(Account { is_kept: false, ..Account::clone(&account) });
                kept.account.map(last_word)
            }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self) -> Result<Option<Account>, Error> {
        tracing::debug!(registry = %self.registry, program = self.program, "asking the credential helper");
        let failed = |why: String| Error::Helper { reason: format!("the credential helper {} {why}", self.program) };
        let mut command = Command::new(&self.program);
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().map_err(|error| failed(format!("cannot be started: {error}")))?;
        let ended = timeout(TIMEOUT, converse(child, &self.server)).await;
        let ended = ended.map_err(|_| failed(format!("did not end within {} s", TIMEOUT.as_secs())))?;
        let (output, code) = ended.map_err(|error| failed(format!("cannot be asked: {error}")))?;
        if code != Some(0) {
            if String::from_utf8_lossy(&output).to_ascii_lowercase().contains(NOT_FOUND) {
                return Ok(None);
            }
            let code = code.map_or_else(|| "a signal".to_owned(), |code| format!("code {code}"));
            return Err(failed(format!("ended with {code}")));
        }
        // What it wrote is a secret, whatever it is.
        let output: Output =
            serde_json::from_slice(&output).map_err(|_| failed("wrote something else than credentials".to_owned()))?;
        let secret = Secret::from(output.secret);
        let account = match output.username.as_str() {
            TOKEN_USER => Account::by_token(&self.registry, "", &secret),
            username => Account::by_password(&self.registry, username, &secret),
        };
        account.map(Some).ok_or_else(|| failed("named a user that cannot be one".to_owned()))
    }
}

/// Names the server on standard input; what the program writes, and its exit code.
async fn converse(mut child: Child, server: &str) -> std::io::Result<(Vec<u8>, Option<i32>)> {
    if let Some(mut stdin) = child.stdin.take() {
        // One that knows what to say without reading is as good.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_OUTPUT_BYTES).read_to_end(&mut output).await?;
    }
    Ok((output, child.wait().await?.code()))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests write a helper")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    fn helper(folder: &Path, script: &str) -> Helper {
        let path = folder.join("docker-credential-test");
        // Renamed into place: the kernel does not run what is still open for writing, by a child of another test.
        let writing = folder.join("writing");
        std::fs::write(&writing, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&writing, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&writing, &path).unwrap();
        Helper::new("r.example".parse().unwrap(), path.to_str().unwrap().to_owned(), "r.example".to_owned())
    }

    fn calls(folder: &Path) -> usize {
        std::fs::read_to_string(folder.join("calls")).map_or(0, |text| text.lines().count())
    }

    /// Another process that forks while a script is open for writing makes it busy for a moment.
    async fn account(helper: &Helper) -> Result<Option<Arc<Account>>, Error> {
        loop {
            match helper.account().await {
                Err(Error::Helper { reason }) if reason.contains("busy") => tokio::task::yield_now().await,
                other => return other,
            }
        }
    }

    #[tokio::test]
    async fn answers_are_kept_until_refused() {
        let folder = tempfile::tempdir().unwrap();
        let script = format!(
            "cat > {0}/asked; echo x >> {0}/calls; echo '{{\"ServerURL\":\"r.example\",\"Username\":\"AWS\",\"Secret\":\"s\"}}'",
            folder.path().display()
        );
        let helper = helper(folder.path(), &script);
        assert_eq!(helper.kept(), None);
        let first = account(&helper).await.unwrap().unwrap();
        assert!(!first.is_kept && first.identity == crate::upstream::Identity::Account("AWS@r.example".into()));
        assert_eq!(std::fs::read_to_string(folder.path().join("asked")).unwrap(), "r.example");
        let kept = account(&helper).await.unwrap().unwrap();
        assert!(kept.is_kept && calls(folder.path()) == 1);
        helper.forget(&kept);
        let last_word = account(&helper).await.unwrap().unwrap();
        assert!(!last_word.is_kept && calls(folder.path()) == 1, "not for every refusal");
        helper.lock().as_mut().unwrap().got_at = Instant::now().checked_sub(PAUSE).unwrap();
        assert!(!account(&helper).await.unwrap().unwrap().is_kept);
        assert_eq!(calls(folder.path()), 2);
        helper.lock().as_mut().unwrap().got_at = Instant::now().checked_sub(KEPT_FOR).unwrap();
        let (one, other) = tokio::join!(account(&helper), account(&helper));
        assert!(one.is_ok() && other.is_ok() && calls(folder.path()) == 3, "one process for all who wait");
    }

    #[tokio::test]
    async fn other_endings() {
        let folder = tempfile::tempdir().unwrap();
        let ask = async |script: &str| account(&helper(folder.path(), script)).await;
        assert_eq!(ask("echo 'credentials not found in native keychain'; exit 1").await, Ok(None));
        let token = ask(r#"echo '{"Username":"<token>","Secret":"refresh"}'"#).await.unwrap().unwrap();
        assert_eq!(token.proof, super::super::login::Proof::RefreshToken(Secret::from("refresh".to_owned())));
        for (script, expected) in [
            ("echo hunter2; exit 3", "ended with code 3"),
            ("echo hunter2", "wrote something else than credentials"),
            (r#"echo '{"Username":"a:b","Secret":"hunter2"}'"#, "named a user that cannot be one"),
            ("kill -9 $$", "ended with a signal"),
        ] {
            let error = ask(script).await.unwrap_err().to_string();
            assert!(error.ends_with(expected) && !error.contains("hunter2"), "{error}");
        }
        let none = Helper::new("r.example".parse().unwrap(), "/nowhere/helper".to_owned(), "r".to_owned());
        assert!(none.account().await.unwrap_err().to_string().contains("cannot be started"));
    }
}
