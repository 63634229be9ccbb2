//! Files of a line for each client: `name:what-proves-it`.

use super::name::ClientName;

/// A line that cannot be used. Repeats nothing of it: it may hold a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct BadLine {
    /// From 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub problem: String,
}

/// One client's line.
#[derive(Debug)]
pub(super) struct Line<'a> {
    number: usize,
    pub(super) name: ClientName,
    pub(super) proof: &'a str,
}

impl Line<'_> {
    /// Says what is wrong with it.
    pub(super) fn refuse(&self, problem: impl Into<String>) -> BadLine {
        BadLine { line: self.number, problem: problem.into() }
    }
}

/// The lines that say something: not the empty ones, and not those that begin with `#`.
pub(super) fn lines(text: &[u8]) -> Result<Vec<Line<'_>>, BadLine> {
    let mut found = Vec::new();
    for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let refuse = |problem: &str| BadLine { line: index + 1, problem: problem.to_owned() };
        let line = std::str::from_utf8(line).map_err(|_| refuse("it is not UTF-8 text"))?.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, proof) = line.split_once(':').ok_or_else(|| refuse("write a name, a colon, and what proves it"))?;
        let name = name.parse().map_err(|error: super::InvalidClientName| refuse(&error.to_string()))?;
        found.push(Line { number: index + 1, name, proof });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_that_say_something() {
        let found = lines(b"# people\nann:x:y\r\n\n  bob:z  \n").unwrap();
        let found: Vec<_> = found.iter().map(|line| (line.number, line.name.as_str(), line.proof)).collect();
        assert_eq!(found, [(2, "ann", "x:y"), (4, "bob", "z")]);
        assert!(lines(b"").unwrap().is_empty());
    }

    #[test]
    fn errors_repeat_nothing() {
        for (text, line) in
            [(&b"a:b\nhunter2"[..], 2), (b":hunter2", 1), (b"\n\nanonymous:hunter2", 3), (b"hunter2\xff:x", 1)]
        {
            let error = lines(text).unwrap_err();
            assert_eq!(error.line, line);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = lines(&text);
        }

        #[test]
        fn what_is_written_is_read(names in proptest::collection::vec("[a-z][a-z0-9 .@-]{0,8}[a-z]", 0..6)) {
            let text: String = names.iter().map(|name| format!("{name}:proof of {name}\n")).collect();
            let read = lines(text.as_bytes()).unwrap();
            prop_assert_eq!(read.len(), names.len());
            for (line, name) in read.iter().zip(&names) {
                prop_assert_eq!(line.name.as_str(), name);
                prop_assert_eq!(line.proof, format!("proof of {name}"));
            }
        }
    }
}
