//! The description and the routes are one.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

#[test]
fn the_description_names_every_route_and_no_other() {
    let description: Value = serde_json::from_str(&written()).unwrap();
    let mut described = BTreeSet::new();
    for (path, operations) in description["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            described.insert((method.to_ascii_uppercase(), path.clone()));
        }
    }
    let routes: BTreeSet<_> =
        ROUTES.iter().map(|(method, path, _)| (method.as_str().to_owned(), (*path).to_owned())).collect();
    assert_eq!(described, routes);
    assert_eq!(routes.len(), ROUTES.len(), "a route stands twice");
}

#[test]
fn every_reference_of_the_description_leads_somewhere() {
    let text = written();
    let description: Value = serde_json::from_str(&text).unwrap();
    let references: BTreeSet<_> =
        text.split("\"$ref\": \"#").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(references.len() > 5, "{references:?}");
    for reference in references {
        assert!(description.pointer(reference).is_some(), "{reference}");
    }
}

#[test]
fn reading_changes_nothing() {
    let changes = [
        Resource::SetLogLevel,
        Resource::Warm,
        Resource::StopWarm,
        Resource::SetOffline,
        Resource::Pin,
        Resource::Unpin,
        Resource::Purge,
        Resource::Reload,
        Resource::Verify,
        Resource::StopVerify,
    ];
    for (method, path, resource) in ROUTES {
        assert_eq!(changes.contains(resource), *method != Method::GET, "{method} {path}");
    }
}

#[test]
fn what_is_not_there_is_said() {
    let status = |method: Method, path: &str| find(&method, path).map_err(|failure| failure.status.as_u16());
    assert_eq!(status(Method::GET, "/api/v1/status"), Ok((Resource::Status, None)));
    assert_eq!(status(Method::HEAD, "/api/v1/status"), Ok((Resource::Status, None)));
    assert_eq!(status(Method::POST, "/api/v1/status"), Err(405));
    assert_eq!(status(Method::GET, "/api/v1/nothing"), Err(404));
    assert_eq!(status(Method::GET, "/api/v2/status"), Err(404));
    assert_eq!(status(Method::DELETE, "/api/v1/warm/7"), Ok((Resource::StopWarm, Some("7".to_owned()))));
    assert_eq!(status(Method::GET, "/api/v1/warm/"), Err(404));
    assert_eq!(status(Method::GET, "/api/v1/warm/7/8"), Err(404));
    assert_eq!(find(&Method::DELETE, "/api/v1/log-level").unwrap_err().allowed(), Some("GET, PUT"));
}

/// `FOREBAY_BLESS=1 cargo test --lib openapi` writes the schemas of the types into the description.
#[test]
fn the_schemas_of_openapi_are_those_of_the_types() {
    let mut generator = schemars::generate::SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    generator.subschema_for::<ErrorBody>();
    generator.subschema_for::<Status>();
    generator.subschema_for::<TrafficHistory>();
    generator.subschema_for::<Images>();
    generator.subschema_for::<Blobs>();
    generator.subschema_for::<Fills>();
    generator.subschema_for::<LogLevelBody>();
    generator.subschema_for::<WarmBody>();
    generator.subschema_for::<Warms>();
    generator.subschema_for::<Why>();
    generator.subschema_for::<History>();
    generator.subschema_for::<Upstreams>();
    generator.subschema_for::<OfflineBody>();
    generator.subschema_for::<PinBody>();
    generator.subschema_for::<UnpinBody>();
    generator.subschema_for::<Pins>();
    generator.subschema_for::<PurgeBody>();
    generator.subschema_for::<Purged>();
    generator.subschema_for::<Reload>();
    generator.subschema_for::<VerifyBody>();
    generator.subschema_for::<Verify>();
    let schemas = Value::Object(generator.take_definitions(true));
    let mut description: Value = serde_json::from_str(&written()).unwrap();
    if std::env::var_os("FOREBAY_BLESS").is_some() {
        description["components"]["schemas"] = schemas;
        let text = serde_json::to_string_pretty(&description).unwrap() + "\n";
        return bless(&text);
    }
    assert_eq!(description["components"]["schemas"], schemas, "FOREBAY_BLESS=1 writes them");
}

const FILE: &str = "src/admin/api/openapi.json";

/// The description as it stands in the file now.
#[expect(clippy::disallowed_methods, reason = "a description that is generated")]
fn written() -> String {
    std::fs::read_to_string(FILE).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "a description that is generated")]
fn bless(text: &str) {
    std::fs::write(FILE, text).unwrap();
}
