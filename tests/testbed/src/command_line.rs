//! Calls of `oncache` on a host, and what they say.

use std::{process::Output, time::Duration};

use serde_json::Value;

use crate::{host::Host, process::output_within};

/// How long one call may take.
const CALL_PATIENCE: Duration = Duration::from_secs(30);

impl Host {
    /// Runs `oncache` with the arguments.
    ///
    /// # Panics
    /// If it cannot be started, or does not end within half a minute.
    pub fn oncache(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(self.binary());
        command.args(arguments);
        output_within(command, CALL_PATIENCE)
            .unwrap_or_else(|error| panic!("{}: oncache {arguments:?}: {error}", self.name))
    }

    /// Runs `oncache` and returns its standard output.
    ///
    /// # Panics
    /// If it fails, with what it wrote to standard error.
    pub fn oncache_ok(&self, arguments: &[&str]) -> String {
        let output = self.oncache(arguments);
        assert!(
            output.status.success(),
            "{}: oncache {arguments:?} ended with {}: {}",
            self.name,
            output.status,
            String::from_utf8_lossy(&output.stderr),
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `oncache` and parses its standard output; `--json` is the caller's to give.
    ///
    /// # Panics
    /// If it fails or prints no JSON.
    pub fn oncache_json(&self, arguments: &[&str]) -> Value {
        let text = self.oncache_ok(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!(
                "{}: oncache {arguments:?} printed no JSON: {error}: {text}",
                self.name
            )
        })
    }

    /// `oncache status --json`.
    ///
    /// # Panics
    /// Without a daemon.
    #[must_use]
    pub fn status(&self) -> Value {
        self.oncache_json(&["status", "--json"])
    }

    /// Runs `oncache` where it has to fail, and returns its one line of complaint.
    ///
    /// # Panics
    /// If it does not end with status 1, prints anything else to standard error, or anything to
    /// standard output.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.oncache(arguments);
        assert!(
            output.stdout.is_empty(),
            "{arguments:?} prints {}",
            String::from_utf8_lossy(&output.stdout)
        );
        complaint(arguments, &output)
    }
}

/// The one line on standard error of a command that ended with status 1.
///
/// # Panics
/// If it ended otherwise, or said more or less.
#[must_use]
pub fn complaint(arguments: &[&str], output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    let line = text.trim_end_matches('\n');
    assert!(
        !line.is_empty() && !line.contains('\n'),
        "{arguments:?}: not one line:\n{text}"
    );
    line.to_owned()
}
