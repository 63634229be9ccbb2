//! `forebay completions SHELL` and `forebay man`: made of the definition of the command line itself.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use super::Cli;

/// `forebay completions SHELL`.
#[derive(Clone, Debug, clap::Args)]
pub struct Completions {
    /// The shell that reads it
    pub shell: Shell,
}

/// `forebay man`.
#[derive(Clone, Debug, clap::Args)]
pub struct Manual {
    /// Folder to write a page for each command to, such as /usr/local/share/man/man1; the main page is printed without it
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

impl Completions {
    /// What to print.
    pub fn run(&self) -> String {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "forebay", &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }
}

impl Manual {
    /// What to print.
    pub fn run(&self) -> anyhow::Result<String> {
        let Some(folder) = &self.out else { return page(Cli::command()) };
        let failed = || format!("cannot write to {}", folder.display());
        #[expect(clippy::disallowed_methods, reason = "a folder that the user named")]
        std::fs::create_dir_all(folder).with_context(failed)?;
        clap_mangen::generate_to(Cli::command(), folder).with_context(failed)?;
        Ok(String::new())
    }
}

fn page(command: clap::Command) -> anyhow::Result<String> {
    let mut text = Vec::new();
    Man::new(command).render(&mut text).context("cannot make the page")?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_completed_and_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        Manual { out: Some(folder.path().to_owned()) }.run().unwrap();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = Completions { shell }.run();
            for command in Cli::command().get_subcommands() {
                assert!(text.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
        }
        for command in Cli::command().get_subcommands() {
            assert!(folder.path().join(format!("forebay-{}.1", command.get_name())).exists(), "{}", command.get_name());
        }
        assert!(Manual { out: None }.run().unwrap().contains("forebay"));
    }
}
