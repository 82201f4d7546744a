//! `oncache check`.

use std::{io::ErrorKind, path::PathBuf, process::ExitCode};

use crate::{
    coherence::own_tables::OwnTables,
    config,
    config::Config,
    daemon::{self, preflight},
    netlink::{Netlink, NetlinkError, host_facts},
    peers,
    probe::{Roots, Wishes, probe},
    slow_path::{Endpoint, Wanted, own::OwnSlowPath},
    state::{StateError, Store},
};

#[derive(Debug, clap::Args)]
pub struct Check {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = daemon::CONFIG)]
    config: PathBuf,
    /// Judge the file alone, not this host: for a file that is for another one
    #[arg(long)]
    syntax_only: bool,
}

impl Check {
    pub async fn run(self, state: PathBuf) -> anyhow::Result<ExitCode> {
        let file = config::read(&self.config)?;
        if self.syntax_only {
            super::print(&format!("{}: ok", self.config.display()))?;
            return Ok(ExitCode::SUCCESS);
        }
        let netlink = Netlink::new()?;
        let facts = host_facts(&netlink, file.underlay()).await?;
        let config = peers::resolve(&file, &facts);
        let (underlay, wishes) = match &config {
            Ok(config) => (Some(&*config.node.underlay), Wishes::from(config)),
            Err(_) => (None, Wishes::default()),
        };
        // Who may not ask may not have any either, and hears of that.
        let netkit = netlink.has_netkit().await.unwrap_or(false);
        let report = probe(&Roots::host(), underlay, netkit, wishes);
        for finding in &report.findings {
            let verdict = match (finding.ok, finding.required) {
                (true, _) => "ok",
                (false, true) => "MISSING",
                (false, false) => "warning",
            };
            super::print(&format!("{verdict:>8}  {}", finding.message))?;
        }
        let config = config?;
        let obstacles = obstacles(&netlink, &config, Store::new(state), report.can_run()).await?;
        for line in &obstacles {
            super::print(&format!("{:>8}  {line}", "MISSING"))?;
        }
        let Config { node, overlay, .. } = config;
        super::print(&format!(
            "{:>8}  {}: node {}, {} on {}, containers {}, MTU {}",
            "ok",
            self.config.display(),
            node.name,
            node.address,
            node.underlay,
            overlay.subnet,
            overlay.mtu
        ))?;
        Ok(if report.can_run() && obstacles.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

/// What a start would find in its way. Who may not read the state may not start either, and hears of
/// that by the other findings. The kernel is asked for what rules need only where the rest is there: it would
/// refuse for want of that.
async fn obstacles(
    netlink: &Netlink,
    config: &Config,
    store: Store,
    can_run: bool,
) -> Result<Vec<String>, NetlinkError> {
    let state = match store.load_present() {
        Ok((state, _)) => state,
        Err(StateError::File { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
            return Ok(Vec::new());
        }
        Err(error) => return Ok(vec![error.to_string()]),
    };
    let slow_path = OwnSlowPath::new(netlink.clone(), OwnTables::default());
    let endpoints = state.containers.values().map(Endpoint::of).collect();
    let wanted = Wanted::new(config, endpoints);
    let directory = store.directory();
    let mut lines = preflight::obstacles(netlink, &slow_path, &wanted, &state, directory).await?;
    if can_run {
        lines.extend(preflight::policy_obstacles(config, &state).await);
    }
    Ok(lines)
}
