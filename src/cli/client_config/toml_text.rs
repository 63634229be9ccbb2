//! TOML that somebody else wrote, changed in one place.

use anyhow::Context as _;
use toml_edit::DocumentMut;
use toml_edit::Item;
use toml_edit::Table;
use toml_edit::TableLike;

pub(super) fn parse(path: &str, text: &str) -> anyhow::Result<DocumentMut> {
    text.parse().with_context(|| format!("{path} is not TOML"))
}

/// The table at this path, made where there is none.
pub(super) fn table<'a>(document: &'a mut DocumentMut, keys: &[&str]) -> anyhow::Result<&'a mut dyn TableLike> {
    let mut here: &mut dyn TableLike = document.as_table_mut();
    for (depth, key) in keys.iter().enumerate() {
        let item = here.entry(key).or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(depth + 1 < keys.len());
            Item::Table(table)
        });
        here = item.as_table_like_mut().with_context(|| format!("{} is not a table", keys[..=depth].join(".")))?;
    }
    Ok(here)
}

/// A string as TOML writes it.
pub(super) fn quoted(text: &str) -> String {
    toml_edit::Value::from(text).to_string()
}
