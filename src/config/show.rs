//! The configuration as TOML.

use super::Clients;
use super::Config;
use super::Credentials;
use super::Proxy;
use super::RegistryConfig;
use super::bandwidth::Bandwidth;
use super::quantity::format_duration;
use super::secret::REDACTED;
use crate::telemetry::Format;
use std::fmt::Display;
use std::time::Duration;

/// Writes every key, also those with defaults, so that nobody has to guess what is in force.
pub(super) fn to_toml(config: &Config) -> String {
    let mut out = Writer::default();
    out.table("[server]");
    out.list("listen", &config.server.listen);
    out.text("default_registry", config.server.default_registry.as_ref().map_or("", |registry| registry.as_str()));
    out.duration("shutdown_grace", config.server.shutdown_grace);
    out.raw("max_connections", config.server.max_connections);
    out.duration("header_timeout", config.server.header_timeout);
    if let Some(files) = &config.server.tls {
        out.raw("tls", files.to_toml());
    }
    out.table("[admin]");
    out.text("listen", config.admin.listen);
    match (&config.admin.token, &config.admin.token_file) {
        (_, Some(path)) => out.text("token_file", path.display()),
        (Some(_), None) => out.text("token", REDACTED),
        (None, None) => {}
    }
    if let Some(clients) = &config.clients {
        out.clients(clients);
    }
    out.table("[storage]");
    out.text("path", config.storage.path.display());
    out.text("max_size", config.storage.max_size);
    out.text("min_free", config.storage.min_free);
    out.text("memory_cache", config.storage.memory_cache);
    out.text("scrub_interval", config.storage.scrub_interval.map_or_else(String::new, format_duration));
    out.text("scrub_rate", config.storage.scrub_rate);
    out.table("[upstream]");
    out.bandwidth(&config.upstream.bandwidth);
    out.raw("max_fills", config.upstream.max_fills);
    out.raw("offline", config.upstream.offline);
    out.table("[log]");
    out.text("level", &config.log.level);
    out.text(
        "format",
        match config.log.format {
            Format::Text => "text",
            Format::Json => "json",
        },
    );
    out.table("[telemetry]");
    out.text("otlp_endpoint", config.telemetry.otlp_endpoint.as_ref().map_or("", |url| url.as_str()));
    out.text("service_name", &config.telemetry.service_name);
    for registry in &config.registries {
        out.registry(registry);
    }
    out.0
}

#[derive(Default)]
struct Writer(String);

impl Writer {
    fn table(&mut self, header: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(header);
        self.0.push('\n');
    }

    fn raw(&mut self, key: &str, value: impl Display) {
        self.0.push_str(&format!("{key} = {value}\n"));
    }

    fn text(&mut self, key: &str, value: impl Display) {
        self.raw(key, quoted(value));
    }

    fn duration(&mut self, key: &str, value: Duration) {
        self.text(key, format_duration(value));
    }

    fn list<T: Display>(&mut self, key: &str, values: &[T]) {
        let values: Vec<String> = values.iter().map(quoted).collect();
        self.raw(key, format!("[{}]", values.join(", ")));
    }

    fn clients(&mut self, clients: &Clients) {
        self.table("[clients]");
        for (key, path) in [("htpasswd", &clients.htpasswd), ("tokens", &clients.tokens)] {
            if let Some(path) = path {
                self.text(key, path.display());
            }
        }
        self.raw("anonymous", clients.anonymous);
        for rule in &clients.rules {
            self.table("[[clients.rule]]");
            self.list("clients", &rule.clients);
            self.list("registries", &rule.registries);
            self.list("repositories", &rule.repositories);
        }
    }

    fn registry(&mut self, registry: &RegistryConfig) {
        self.table("[[registry]]");
        self.text("host", &registry.registry);
        self.list("endpoints", &registry.endpoints);
        self.list("aliases", &registry.aliases);
        self.list("virtual_hosts", &registry.virtual_hosts);
        if registry.drops_credentials {
            self.0.push_str("# The credentials are not used: --upstream names another origin.\n");
        }
        self.credentials(registry);
        if let Some(path) = &registry.ca_file {
            self.text("ca_file", path.display());
        }
        if let Some(certificate) = &registry.client_certificate {
            self.text("client_cert", certificate.cert_file.display());
            self.text("client_key", certificate.key_file.display());
        }
        match &registry.proxy {
            Proxy::Environment => self.text("proxy", ""),
            Proxy::None => self.text("proxy", "none"),
            Proxy::Url(url) => self.text("proxy", url),
        }
        self.list("token_realms", &registry.token_realms);
        self.duration("tag_ttl", registry.tag_ttl);
        self.duration("stale_if_error", registry.stale_if_error);
        self.duration("not_found_ttl", registry.not_found_ttl);
        self.duration("grant_ttl", registry.grant_ttl);
        self.raw("offline", registry.offline);
        self.list("allow", &registry.allow);
        self.list("deny", &registry.deny);
        self.duration("connect_timeout", registry.connect_timeout);
        self.duration("read_timeout", registry.read_timeout);
        self.bandwidth(&registry.bandwidth);
        self.raw("max_requests_per_minute", registry.max_requests_per_minute.map_or(0, u32::from));
        self.raw("max_fills", registry.max_fills);
        self.raw("lanes_per_blob", registry.lanes_per_blob);
        self.text("abandon_policy", registry.abandon_policy.as_str());
        for rule in &registry.tag_rules {
            self.table("[[registry.tag_rule]]");
            self.0.push_str(&rule.to_string());
        }
    }

    /// By the keys that they came from.
    fn credentials(&mut self, registry: &RegistryConfig) {
        let keys = &registry.credential_keys;
        if let Some(path) = &keys.docker_config {
            return self.text("docker_config", path.display());
        }
        if let Some(name) = &keys.credential_helper {
            return self.text("credential_helper", name);
        }
        if let Some(Credentials::Password { username, password_file, .. }) = &registry.credentials {
            self.text("username", username);
            match password_file {
                Some(path) => self.text("password_file", path.display()),
                None => self.text("password", REDACTED),
            }
        }
    }

    fn bandwidth(&mut self, bandwidth: &Bandwidth) {
        self.text("bandwidth_limit", bandwidth.limit.map_or_else(String::new, |limit| limit.to_string()));
        let windows: Vec<String> = bandwidth.schedule.iter().map(ToString::to_string).collect();
        self.raw("bandwidth_schedule", format!("[{}]", windows.join(", ")));
    }
}

fn quoted(value: impl Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}
