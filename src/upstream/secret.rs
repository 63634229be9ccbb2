//! Text that cannot be printed by accident.

use std::fmt;

/// A password or token. `Debug` and `Display` print `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;
    use crate::upstream::Credentials;

    #[test]
    fn never_prints() {
        let password = Secret::from("hunter2".to_owned());
        let credentials = Credentials::Password { username: "me".into(), password: password.clone() };
        let printed = format!("{password} {password:?} {credentials:?} {credentials:#?}");
        assert!(!printed.contains("hunter2"), "{printed}");
        assert_eq!(password.expose(), "hunter2");
    }
}
