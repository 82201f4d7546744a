//! PostgreSQL, and pgbench.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use oncache_testbed::{Container, Host};

use super::{Load, Server, as_user, client_output, quantiles, server::PATIENCE};

const PORT: u16 = 5432;
const CLIENTS: &str = "4";
/// 100,000 rows each.
const SCALE: &str = "4";
/// Where the binaries of Debian 12's version are.
const BINARIES: &str = "/usr/lib/postgresql/15/bin";
/// Who the server runs as, made by Debian's package.
const USER: &str = "postgres";
const DIRECTORY: &str = "/run/testbed/postgres";

/// Starts it over a small database in memory. Nothing is written through to any disk, and no
/// maintenance comes in between.
pub fn start(host: &Host, place: &Container, cpu: usize) -> Result<Server, String> {
    let user = as_user(USER).join(" ");
    host.sh(&format!(
        "mkdir -p {DIRECTORY}; chown {USER} {DIRECTORY}; cd {DIRECTORY}
         setpriv {user} {BINARIES}/initdb --pgdata data --auth trust --encoding UTF8 \
             --locale C --no-sync >initdb.log 2>&1
         echo 'host all all all trust' >> data/pg_hba.conf"
    ));
    let ip = place.ip.to_string();
    let data = format!("{DIRECTORY}/data");
    let program = format!("{BINARIES}/postgres");
    let (address, port) = (format!("listen_addresses={ip}"), format!("port={PORT}"));
    let sockets = format!("unix_socket_directories={DIRECTORY}");
    let mut command = vec![program.as_str(), "-D", &data];
    for setting in [
        &*address,
        &port,
        &sockets,
        "fsync=off",
        "synchronous_commit=off",
        "full_page_writes=off",
        "autovacuum=off",
        "shared_buffers=128MB",
        "max_wal_size=4GB",
    ] {
        command.extend(["-c", setting]);
    }
    let server = Server::start(
        "PostgreSQL",
        place,
        USER,
        &command,
        (cpu, PORT, Signal::SIGINT),
    )?;
    // It listens some time before it answers.
    let ready = format!("{BINARIES}/pg_isready");
    let answers = || place.output(&[&ready, "--host", &ip]).status.success();
    let deadline = Instant::now() + PATIENCE;
    while !answers() {
        if Instant::now() >= deadline {
            return Err(format!("PostgreSQL is not ready within {PATIENCE:?}"));
        }
        thread::sleep(Duration::from_millis(50));
    }
    let pgbench = format!("{BINARIES}/pgbench");
    place.run(&[
        &pgbench,
        "--initialize",
        "--quiet",
        "--scale",
        SCALE,
        "--host",
        &ip,
        "--username",
        USER,
        "postgres",
    ]);
    Ok(server)
}

/// Runs transactions for a while: by reading only, or as TPC-B has them.
pub fn load(
    (client, server): (&Container, &Container),
    cpu: usize,
    time: Duration,
    read_only: bool,
) -> Result<Load, String> {
    // Of the host that the client is on: its own mount namespace.
    let directory = "/run/testbed/pgbench";
    client.sh(&format!(
        "rm -rf {directory}; mkdir -p {directory}; chown {USER} {directory}"
    ));
    let (ip, seconds) = (server.ip.to_string(), time.as_secs().max(1).to_string());
    let (pgbench, prefix) = (format!("{BINARIES}/pgbench"), format!("{directory}/log"));
    let mut command = vec![
        pgbench.as_str(),
        "--no-vacuum",
        "--client",
        CLIENTS,
        "--jobs",
        "1",
        "--time",
        &seconds,
        "--protocol",
        "prepared",
        "--log",
        "--log-prefix",
        &prefix,
        "--host",
        &ip,
        "--username",
        USER,
    ];
    if read_only {
        command.push("--select-only");
    }
    command.push("postgres");
    let (said, used) = client_output(client, USER, cpu, &command)?;
    let unclear = || format!("pgbench says what is not understood: {said}");
    let rate = rate(&said).ok_or_else(unclear)?;
    let log = client
        .enter(|| {
            let mut text = String::new();
            for entry in fs::read_dir(directory)? {
                text += &fs::read_to_string(entry?.path())?;
            }
            Ok(text)
        })
        .map_err(|error: std::io::Error| format!("pgbench's log: {error}"))?;
    let latencies: Vec<f64> = log.lines().filter_map(latency).collect();
    let requests = latencies.len() as f64;
    let [median, high] = quantiles(latencies)?;
    Ok(Load {
        requests,
        rate,
        median,
        high,
        used,
    })
}

fn rate(said: &str) -> Option<f64> {
    if !said.contains("number of failed transactions: 0 ") {
        return None;
    }
    let rest = said.split("tps = ").nth(1)?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The third field of a line is the transaction's time in microseconds (pgbench(1)).
fn latency(line: &str) -> Option<f64> {
    line.split(' ').nth(2)?.parse().ok()
}
