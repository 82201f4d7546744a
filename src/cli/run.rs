//! `oncache run`.

use std::path::PathBuf;

use tracing_subscriber::EnvFilter;

use crate::daemon::{self, Paths};

#[derive(Debug, clap::Args)]
pub struct Run {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = daemon::CONFIG)]
    config: PathBuf,
    /// Mount namespace in which network namespaces have their paths, and are named by `container
    /// add`: /proc/1/ns/mnt for a daemon that a service manager has given one of its own
    #[arg(long, value_name = "PATH")]
    mount_namespace: Option<PathBuf>,
}

impl Run {
    pub async fn run(self, socket: PathBuf, state: PathBuf) -> anyhow::Result<()> {
        log_to_stderr();
        let paths = Paths {
            config: self.config,
            mount_namespace: self.mount_namespace,
            socket,
            state,
        };
        Ok(daemon::run(&paths).await?)
    }
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("ONCACHE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    // The journal has a clock of its own.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.init();
    }
}
