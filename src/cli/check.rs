//! `oncache check`.

use std::{path::PathBuf, process::ExitCode};

use crate::{
    config,
    config::Config,
    daemon,
    netlink::{Netlink, host_facts},
    probe::{Roots, Wishes, probe},
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
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let file = config::read(&self.config)?;
        if self.syntax_only {
            super::print(&format!("{}: ok", self.config.display()))?;
            return Ok(ExitCode::SUCCESS);
        }
        let netlink = Netlink::new()?;
        let config = file.resolve(&host_facts(&netlink).await?);
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
        let Config { node, overlay, .. } = config?;
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
        Ok(if report.can_run() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
