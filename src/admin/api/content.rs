//! What is stored: images and blobs.

use std::cmp::Reverse;

use super::Api;
use super::Blob;
use super::Blobs;
use super::Image;
use super::Images;
use super::Page;
use super::Question;
use super::blocking;
use super::failure::Failure;
use super::rfc3339;
use crate::admin::images;
use crate::store::Inventory;

/// What a list of images is to show.
struct Wanted {
    registry: Option<String>,
    search: Option<String>,
    order: Order,
    page: Page,
}

/// Orders of a list; not all of them of every list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Name,
    Size,
    Used,
    Digest,
}

impl Api {
    /// `?registry=`, `?search=` in the name, `?sort=name|size|used`, `?limit=`, `?offset=`.
    pub(super) async fn images(&self, question: &Question) -> Result<Images, Failure> {
        let order = match question.parameter("sort") {
            None | Some("name") => Order::Name,
            Some("size") => Order::Size,
            Some("used") => Order::Used,
            Some(_) => return Err(Failure::bad_request("sort is name, size or used")),
        };
        let wanted = Wanted {
            registry: question.parameter("registry").map(str::to_owned),
            search: question.parameter("search").map(str::to_lowercase),
            order,
            page: question.page()?,
        };
        let gathered = images::gather(&self.control.store, &self.outlines).await;
        Ok(blocking(move || wanted.of(gathered.images())).await)
    }

    /// `?sort=size|used|digest`, `?limit=`, `?offset=`.
    pub(super) async fn blobs(&self, question: &Question) -> Result<Blobs, Failure> {
        let order = match question.parameter("sort") {
            None | Some("size") => Order::Size,
            Some("used") => Order::Used,
            Some("digest") => Order::Digest,
            Some(_) => return Err(Failure::bad_request("sort is size, used or digest")),
        };
        let page = question.page()?;
        let inventory = self.control.store.inventory().await;
        Ok(blocking(move || blobs(inventory, order, page)).await)
    }
}

impl Wanted {
    fn of(&self, mut all: Vec<Image>) -> Images {
        if let Some(registry) = &self.registry {
            all.retain(|image| image.registry == *registry);
        }
        if let Some(text) = &self.search {
            all.retain(|image| name(image).contains(text));
        }
        match self.order {
            Order::Size => all.sort_by_key(|image| Reverse(image.size_bytes)),
            Order::Used => all.sort_by(|a, b| images::used_at(b).cmp(images::used_at(a))),
            Order::Name | Order::Digest => {}
        }
        Images { total: all.len(), images: self.page.of(all) }
    }
}

fn blobs(inventory: Inventory, order: Order, page: Page) -> Blobs {
    let mut all: Vec<_> = inventory.contents.into_iter().collect();
    match order {
        Order::Used => all.sort_unstable_by_key(|(digest, known)| (Reverse(known.used_at), *digest)),
        Order::Digest => all.sort_unstable_by_key(|(digest, _)| *digest),
        Order::Size | Order::Name => {
            all.sort_unstable_by_key(|(digest, known)| (Reverse(known.size_bytes), *digest));
        }
    }
    let total = all.len();
    let blobs = page.of(all).into_iter().map(|(digest, known)| Blob {
        digest: digest.to_string(),
        size_bytes: known.size_bytes,
        media_type: known.media_type.map(|media_type| media_type.as_str().to_owned()),
        last_used: rfc3339(known.used_at),
        repositories: known.repositories.iter().map(ToString::to_string).collect(),
    });
    Blobs { blobs: blobs.collect(), total }
}

/// What a search looks in.
fn name(image: &Image) -> String {
    let tag = image.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
    format!("{}/{}{tag}@{}", image.registry, image.repository, image.digest).to_lowercase()
}
