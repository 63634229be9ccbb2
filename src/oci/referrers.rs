//! Lists of referrers (OCI distribution-spec, "Listing Referrers"): an image index whose descriptors name what refers.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

/// The descriptors of one artifact type only, everything else as it is; `None` when it is no image index.
pub fn filter_referrers(index: &[u8], artifact_type: &str) -> Option<Vec<u8>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        artifact_type: Option<String>,
    }
    let mut index: BTreeMap<&str, &RawValue> = serde_json::from_slice(index).ok()?;
    let manifests: Vec<&RawValue> = serde_json::from_str(index.get("manifests")?.get()).ok()?;
    let is_wanted = |manifest: &&&RawValue| {
        let typed: Result<Typed, _> = serde_json::from_str(manifest.get());
        typed.is_ok_and(|typed| typed.artifact_type.as_deref() == Some(artifact_type))
    };
    // Text stays text: numbers and unknown members are not ours to rewrite.
    let wanted: Vec<&str> = manifests.iter().filter(is_wanted).map(|manifest| manifest.get()).collect();
    let wanted = RawValue::from_string(format!("[{}]", wanted.join(","))).ok()?;
    index.insert("manifests", &wanted);
    serde_json::to_vec(&index).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_one_type_and_all_else() {
        let index = r#"{"schemaVersion": 2, "x": 1.50, "manifests": [
            {"artifactType": "a/b", "size": 1.0}, {"artifactType": "c/d"}, {"size": 3}, {"artifactType": "a/b", "y": []}
        ]}"#;
        let kept = String::from_utf8(filter_referrers(index.as_bytes(), "a/b").unwrap()).unwrap();
        assert_eq!(
            kept,
            r#"{"manifests":[{"artifactType": "a/b", "size": 1.0},{"artifactType": "a/b", "y": []}],"schemaVersion":2,"x":1.50}"#
        );
        let none = filter_referrers(index.as_bytes(), "e/f").unwrap();
        assert!(String::from_utf8(none).unwrap().starts_with(r#"{"manifests":[],"#));
        for text in ["", "[]", "{}", r#"{"manifests":{}}"#] {
            assert_eq!(filter_referrers(text.as_bytes(), "a/b"), None, "{text}");
        }
    }
}
