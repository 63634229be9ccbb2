//! Hashing all that is stored, while it is served.

use serde::Deserialize;
use serde::Serialize;

use super::Api;
use super::Question;
use super::failure::Failure;
use super::rfc3339;
use crate::store::Rotten;
use crate::store::VerifyEnd;
use crate::store::VerifyStartError;
use crate::store::Verifying;

/// `POST /api/v1/verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct VerifyBody {
    /// What is rotten is moved out of the way, so that the next pull fetches it again.
    #[serde(default)]
    pub repair: bool,
}

/// `GET /api/v1/verify`: the verification that goes on, or the last one of this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Verify {
    /// How it stands.
    pub state: VerifyState,
    /// What is rotten is moved out of the way.
    pub repair: bool,
    /// When it began.
    pub started_at: Option<String>,
    /// When it ended.
    pub ended_at: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// All blobs and manifests; zero until they are listed.
    pub total_blobs: u64,
    /// Their bytes.
    pub total_bytes: u64,
    /// Blobs and manifests that were hashed.
    pub blobs: u64,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// How many are not what their digest says.
    pub rotten_blobs: u64,
    /// The first 10,000 of them.
    pub rotten: Vec<RottenBlob>,
}

/// How a verification stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum VerifyState {
    /// There was none since the start.
    Never,
    /// It goes on.
    Running,
    /// All was hashed.
    Done,
    /// It was told to stop.
    Stopped,
    /// It could not go on.
    Failed,
}

/// Content that is not what its digest says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RottenBlob {
    /// What it should be.
    pub digest: String,
    /// How long it is.
    pub size_bytes: u64,
    /// What is wrong.
    pub problem: String,
    /// It is out of the way.
    pub quarantined: bool,
    /// Why it is not, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl From<&Rotten> for RottenBlob {
    fn from(rotten: &Rotten) -> Self {
        Self {
            digest: rotten.digest.to_string(),
            size_bytes: rotten.size_bytes,
            problem: rotten.problem.to_string(),
            quarantined: matches!(rotten.quarantined, Some(Ok(()))),
            error: rotten.quarantined.clone().and_then(Result::err),
        }
    }
}

impl Api {
    pub(super) fn start_verify(&self, question: &Question) -> Result<Verify, Failure> {
        let wanted: VerifyBody = question.json()?;
        match self.control.store.verify(wanted.repair) {
            Ok(verifying) => Ok(describe(Some(&verifying))),
            Err(VerifyStartError::Running) => {
                let message = "a verification goes on already: GET tells how far it is, DELETE stops it";
                Err(Failure::conflict(message))
            }
            Err(error @ VerifyStartError::Thread(_)) => Err(Failure::unavailable(error.to_string())),
        }
    }

    pub(super) fn verification(&self) -> Verify {
        describe(self.control.store.verification().as_ref())
    }

    pub(super) fn stop_verify(&self) -> Verify {
        let verifying = self.control.store.verification();
        if let Some(verifying) = &verifying {
            verifying.stop();
        }
        describe(verifying.as_ref())
    }
}

fn describe(verifying: Option<&Verifying>) -> Verify {
    let progress = verifying.map(Verifying::progress).unwrap_or_default();
    let (state, error) = match (&progress.end, verifying) {
        (_, None) => (VerifyState::Never, None),
        (None, Some(_)) => (VerifyState::Running, None),
        (Some((_, VerifyEnd::Done)), _) => (VerifyState::Done, None),
        (Some((_, VerifyEnd::Stopped)), _) => (VerifyState::Stopped, None),
        (Some((_, VerifyEnd::Failed(problem))), _) => (VerifyState::Failed, Some(problem.clone())),
    };
    Verify {
        state,
        repair: verifying.is_some_and(Verifying::repairs),
        started_at: verifying.map(|verifying| rfc3339(verifying.started_at())),
        ended_at: progress.end.as_ref().map(|(at, _)| rfc3339(*at)),
        error,
        total_blobs: progress.total_blobs,
        total_bytes: progress.total_bytes,
        blobs: progress.blobs,
        bytes: progress.bytes,
        rotten_blobs: progress.rotten_blobs,
        rotten: progress.rotten.iter().map(RottenBlob::from).collect(),
    }
}
