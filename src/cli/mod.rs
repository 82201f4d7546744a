//! The command line: one file a command.

mod cache;
mod check;
mod container;
mod down;
mod policy;
mod run;
mod stats;
mod status;
mod table;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::{
    allocator, control,
    control::{api::NotCarried, client::Client},
    daemon,
    shown::{LINE, VALUE, cut, cut_words},
};

/// The most characters of a line of complaint, which may list many objects.
const LONGEST: usize = 4 * LINE;

/// A container overlay network with a cache-based eBPF fast path.
#[derive(Debug, Parser)]
#[command(name = "oncache", version, about, max_term_width = 100)]
#[command(
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage. Errors are one line each on \
standard error: what failed, on which object, why, and what to do."
)]
pub struct Arguments {
    /// Socket of the daemon
    #[arg(long, global = true, value_name = "PATH", default_value = control::SOCKET)]
    socket: PathBuf,
    /// Directory of the daemon's state
    #[arg(long, global = true, value_name = "DIR", default_value = daemon::STATE)]
    state: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    ///
    /// Sets up the overlay and the fast path, serves the control socket and keeps everything as
    /// configured. SIGHUP reloads the configuration; SIGTERM ends the daemon and leaves overlay and
    /// fast path running. log.level in the configuration sets the log level (error, warn, info,
    /// debug, trace), and ONCACHE_LOG where it is absent.
    Run(run::Run),
    /// Validate the configuration and probe the kernel
    ///
    /// Says what the overlay or its fast path lacks. Changes nothing. Exit status 1 if the overlay
    /// could not run.
    Check(check::Check),
    /// Show node, peers, containers, programs, caches and hit ratio
    Status(status::Status),
    /// Add, delete and list containers
    #[command(subcommand)]
    Container(container::ContainerCommand),
    /// Show or flush the caches
    #[command(subcommand)]
    Cache(cache::Cache),
    /// Apply, list and clear the run-time rules of the network policy
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Show packet counters by program and reason
    Stats(stats::Stats),
    /// Remove every trace from the host
    ///
    /// Deletes containers, devices, routes, rules, programs and maps of oncache's and restores the
    /// kernel settings that were changed. Ends the daemon if it runs; works without one.
    Down(down::Down),
}

/// Parses the arguments, runs the command, prints its failure.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(misuse) => return refuse(&misuse),
    };
    if matches!(arguments.command, Command::Run(_)) {
        allocator::be_frugal();
    }
    match run_command(arguments) {
        Ok(code) => code,
        Err(error) => {
            // Several faults of a configuration are several lines already.
            for line in said(&error).lines() {
                eprintln!("oncache: {}", cut(line, LONGEST));
            }
            ExitCode::FAILURE
        }
    }
}

/// Says what is wrong with the command line, without repeating long arguments whole.
fn refuse(misuse: &clap::Error) -> ExitCode {
    let text = misuse.render().to_string();
    let is_short = |line: &str| line.len() <= LINE && cut_words(line, VALUE) == line;
    if !misuse.use_stderr() || text.lines().all(is_short) {
        misuse.exit();
    }
    for line in text.lines() {
        eprintln!("{}", cut(&cut_words(line, VALUE), LINE));
    }
    ExitCode::from(2)
}

/// An error and its causes, each said once: most errors say theirs themselves.
fn said(error: &anyhow::Error) -> String {
    let causes = error.chain().skip(1).map(ToString::to_string);
    causes.fold(error.to_string(), |line, cause| {
        if line.contains(&cause) {
            line
        } else {
            format!("{line}: {cause}")
        }
    })
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn run_command(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let client = Client::new(&arguments.socket);
    match arguments.command {
        Command::Run(command) => command.run(arguments.socket, arguments.state).await?,
        Command::Check(command) => return command.run(arguments.state).await,
        Command::Status(command) => command.run(&client).await?,
        Command::Container(command) => command.run(&client).await?,
        Command::Cache(command) => command.run(&client).await?,
        Command::Policy(command) => command.run(&client).await?,
        Command::Stats(command) => command.run(&client).await?,
        Command::Down(command) => {
            command
                .run(&client, &arguments.socket, arguments.state)
                .await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a value as indented JSON.
fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&serde_json::to_string_pretty(value).context("encode the answer")?)
}

/// Prints text to standard output. A reader that has gone (`| head`) is no failure.
/// What is in the way of the fast path, one line each.
fn hindrances(all: &[NotCarried]) -> String {
    let lines = all.iter().map(|it| {
        let NotCarried {
            device,
            reason,
            flows,
        } = it;
        format!("{device}: {reason}: not carried ({flows})\n")
    });
    lines.collect()
}

fn print(text: &str) -> anyhow::Result<()> {
    use std::io::{ErrorKind, Write as _};
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        _ => Ok(()),
    }
}
