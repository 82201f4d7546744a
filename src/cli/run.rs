//! `oncache run`.

use std::path::PathBuf;

use crate::{
    daemon::{self, Paths},
    log,
};

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
        log::to_stderr();
        let paths = Paths {
            config: self.config,
            mount_namespace: self.mount_namespace,
            socket,
            state,
        };
        Ok(daemon::run(&paths).await?)
    }
}
