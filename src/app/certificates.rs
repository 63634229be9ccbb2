//! The certificates of the registry port, taken up while everything runs.

use std::time::Duration;

use crate::config;
use crate::config::TlsFiles;
use crate::config::TlsPem;
use crate::serve;
use crate::serve::Tls;

/// How often the files of certificates are looked at.
const CERTIFICATES_EVERY: Duration = Duration::from_secs(5);

/// The certificates of the registry port, and the files that they are in.
pub(super) struct Certificates {
    files: TlsFiles,
    pem: TlsPem,
    pub(super) tls: Tls,
}

impl Certificates {
    pub(super) fn load(files: &TlsFiles) -> Result<Self, config::Error> {
        let refused = |problem: String| config::Error::Refused { key: "server.tls".to_owned(), problem };
        let pem = files.read().map_err(refused)?;
        let tls = Tls::new(&serve_pem(&pem)).map_err(|error| refused(error.to_string()))?;
        Ok(Self { files: files.clone(), pem, tls })
    }

    /// Takes up changes of the files, for ever. Looks into them instead of being told: that also works where they are
    /// links that change, as in a cluster, and for a file that another machine writes.
    pub(super) async fn watch(mut self) {
        let mut refused = None;
        loop {
            tokio::time::sleep(CERTIFICATES_EVERY).await;
            let files = self.files.clone();
            let Ok(read) = tokio::task::spawn_blocking(move || files.read()).await else { continue };
            if read.as_ref() == Ok(&self.pem) {
                refused = None;
                continue;
            }
            let taken = read.and_then(|pem| match self.tls.replace(&serve_pem(&pem)) {
                Ok(()) => Ok(pem),
                Err(error) => Err(error.to_string()),
            });
            match taken {
                Ok(pem) => {
                    tracing::info!(cert = %self.files.cert.display(), "new certificates are in use");
                    (self.pem, refused) = (pem, None);
                }
                // Certificate and key are written one after the other: half of a change is nothing to shout about.
                Err(problem) if refused.as_ref() == Some(&problem) => {}
                Err(problem) => {
                    tracing::warn!(problem, "the certificates have changed and cannot be used; the old ones stay");
                    refused = Some(problem);
                }
            }
        }
    }
}

fn serve_pem(pem: &TlsPem) -> serve::Pem {
    let TlsPem { cert, key, client_ca } = pem.clone();
    serve::Pem { cert, key, client_ca }
}
