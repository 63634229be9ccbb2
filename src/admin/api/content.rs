//! What is stored: images and blobs.

use std::cmp::Reverse;

use super::Api;
use super::Blob;
use super::Blobs;
use super::Image;
use super::Images;
use super::Question;
use super::failure::Failure;
use super::rfc3339;
use crate::admin::images;

impl Api {
    /// `?registry=`, `?search=` in the name, `?sort=name|size|used`, `?limit=`, `?offset=`.
    pub(super) async fn images(&self, question: &Question) -> Result<Images, Failure> {
        let mut all = images::list(&self.control.store, &self.outlines).await;
        if let Some(registry) = question.parameter("registry") {
            all.retain(|image| image.registry == registry);
        }
        if let Some(text) = question.parameter("search") {
            let text = text.to_lowercase();
            all.retain(|image| name(image).contains(&text));
        }
        match question.parameter("sort") {
            None | Some("name") => {}
            Some("size") => all.sort_by_key(|image| Reverse(image.size_bytes)),
            Some("used") => all.sort_by(|a, b| images::used_at(b).cmp(images::used_at(a))),
            Some(_) => return Err(Failure::bad_request("sort is name, size or used")),
        }
        Ok(Images { total: all.len(), images: question.page(all)? })
    }

    /// `?sort=size|used|digest`, `?limit=`, `?offset=`.
    pub(super) async fn blobs(&self, question: &Question) -> Result<Blobs, Failure> {
        let inventory = self.control.store.inventory().await;
        let mut all: Vec<_> = inventory.contents.into_iter().collect();
        match question.parameter("sort") {
            None | Some("size") => all.sort_by_key(|(digest, known)| (Reverse(known.size_bytes), digest.to_string())),
            Some("used") => all.sort_by_key(|(digest, known)| (Reverse(known.used_at), digest.to_string())),
            Some("digest") => all.sort_by_cached_key(|(digest, _)| digest.to_string()),
            Some(_) => return Err(Failure::bad_request("sort is size, used or digest")),
        }
        let total = all.len();
        let blobs = question.page(all)?.into_iter().map(|(digest, known)| Blob {
            digest: digest.to_string(),
            size_bytes: known.size_bytes,
            media_type: known.media_type.map(|media_type| media_type.as_str().to_owned()),
            last_used: rfc3339(known.used_at),
            repositories: known.repositories.iter().map(ToString::to_string).collect(),
        });
        Ok(Blobs { blobs: blobs.collect(), total })
    }
}

/// What a search looks in.
fn name(image: &Image) -> String {
    let tag = image.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
    format!("{}/{}{tag}@{}", image.registry, image.repository, image.digest).to_lowercase()
}
