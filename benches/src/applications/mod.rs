//! Applications as they are: a server in one container, its load in another.

mod memcached;
mod nginx;
mod postgres;
mod server;

use std::{
    fmt,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::sys::resource::{UsageWho, getrusage};
use oncache_testbed::{Container, output_within};

use self::server::{Server, as_user};
use crate::{
    column::{Bed, Column, Kind, Wire},
    cpu::SoftirqDaemon,
    metric::Row,
    path::Passed,
    rounds::Effort,
    table::{AGAINST, Table},
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Application {
    Memcached,
    PostgresSelect,
    PostgresTpcb,
    Nginx,
}

impl fmt::Display for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Memcached => "memcached",
            Self::PostgresSelect => "PostgreSQL, select",
            Self::PostgresTpcb => "PostgreSQL, TPC-B",
            Self::Nginx => "nginx, HTTP/1.1",
        })
    }
}

/// What a run of a load gave.
pub struct Load {
    requests: f64,
    /// Per second.
    rate: f64,
    /// Latency in microseconds, the median.
    median: f64,
    /// And of the slowest hundredth the quickest.
    high: f64,
    /// What the client used of the CPU.
    used: Duration,
}

const ALL: [Application; 4] = [
    Application::Memcached,
    Application::PostgresSelect,
    Application::PostgresTpcb,
    Application::Nginx,
];

const RATE: &str = "thousand requests/s";
const MEDIAN: &str = "p50, us";
const HIGH: &str = "p99, us";
/// CPU time a request.
pub const COST: &str = "CPU, us per request";

/// The programs, and Debian's packages that have them.
const PROGRAMS: [(&str, &str); 6] = [
    ("/usr/bin/memcached", "memcached"),
    ("/usr/lib/postgresql/15/bin/postgres", "postgresql-15"),
    ("/usr/lib/postgresql/15/bin/pgbench", "postgresql-15"),
    ("/usr/sbin/nginx", "nginx-light"),
    ("/usr/bin/wrk", "wrk"),
    ("/usr/bin/taskset", "util-linux"),
];

/// Says in one line what is not installed.
fn check_programs() -> Result<(), String> {
    let missing = PROGRAMS
        .iter()
        .filter(|(path, _)| !Path::new(path).exists());
    let mut packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let packages = packages.join(" ");
    Err(format!(
        "{packages}: not installed; run `make bench-applications`, or `apt-get install {packages}`"
    ))
}

/// Measures all of them on all columns, round by round.
pub fn run(columns: &[Column], effort: Effort) -> Result<Vec<Row>, String> {
    check_programs()?;
    // The floor has no other container than the two; that is enough here too.
    let beds: Vec<Bed> = columns
        .iter()
        .map(|column| Bed::new(column, Wire::Whole))
        .collect::<Result<_, _>>()?;
    let mut rows = Vec::new();
    for application in ALL {
        for bed in &beds {
            let column = bed.column.name.clone();
            rows.push(Row::new([application.to_string(), column]));
        }
    }
    let mut all: Vec<&mut [Row]> = rows.chunks_mut(beds.len()).collect();
    let mut servers: Vec<[Server; 3]> = Vec::new();
    for bed in &beds {
        let (host, place) = (bed.lab.beta(), &bed.server);
        eprintln!("servers of {}", bed.column.name);
        servers.push([
            memcached::start(place, effort.cpu)?,
            postgres::start(host, place, effort.cpu)?,
            nginx::start(host, place, effort.cpu)?,
        ]);
    }
    for round in 1..=effort.rounds {
        eprintln!("round {round} of {}", effort.rounds);
        for (application, rows) in ALL.into_iter().zip(&mut all) {
            for ((bed, [memcached, postgres, nginx]), row) in
                beds.iter().zip(&servers).zip(rows.iter_mut())
            {
                let server = match application {
                    Application::Memcached => memcached,
                    Application::PostgresSelect | Application::PostgresTpcb => postgres,
                    Application::Nginx => nginx,
                };
                once(application, bed, server, effort, row)?;
            }
        }
    }
    Ok(rows)
}

fn once(
    application: Application,
    bed: &Bed,
    server: &Server,
    effort: Effort,
    row: &mut Row,
) -> Result<(), String> {
    let (client, place, cpu, time) = (&bed.client, &bed.server, effort.cpu, effort.time);
    let softirqs = SoftirqDaemon::of(cpu)?;
    let passed = Passed::of(bed)?;
    let before = (server.used(), softirqs.read());
    let load = match application {
        Application::Memcached => memcached::load(client, place, cpu, time),
        Application::PostgresSelect => postgres::load((client, place), cpu, time, true),
        Application::PostgresTpcb => postgres::load((client, place), cpu, time, false),
        Application::Nginx => nginx::load(client, place, cpu, time),
    };
    let load = load.map_err(|error| format!("{}, {application}: {error}", bed.column.name))?;
    let after = (server.used(), softirqs.read());
    if after.0 == before.0 {
        return Err("no CPU time is known of the server".to_owned());
    }
    let hit_ratio =
        Passed::of(bed)?.check_of(passed, bed, &application, (true, Some(LEAST_HITS)))?;
    let used = load.used + (after.0 - before.0) + (after.1 - before.1);
    row.push(RATE, load.rate / 1e3);
    row.push(MEDIAN, load.median);
    row.push(HIGH, load.high);
    row.push(COST, used.as_secs_f64() * 1e6 / load.requests);
    if let Some(ratio) = hit_ratio {
        row.push("hit ratio, %", ratio * 100.0);
    }
    Ok(())
}

/// The least share of the packets that the caches must have carried: connections begin and end.
const LEAST_HITS: f64 = 0.98;

/// oncache divided by each column.
pub fn ratios(rows: &[Row]) -> Table {
    let present: Vec<&str> = AGAINST
        .into_iter()
        .filter(|name| rows.iter().any(|row| row.head[1] == *name))
        .collect();
    let mut head = vec!["application".to_owned(), "of".to_owned()];
    head.extend(present.iter().map(|name| format!("/ {name}")));
    let mut table = vec![head];
    for own in rows.iter().filter(|row| row.head[1] == "oncache") {
        for metric in [RATE, MEDIAN, HIGH, COST] {
            let mut line = vec![own.head[0].clone(), metric.to_owned()];
            for name in &present {
                let other = rows
                    .iter()
                    .find(|row| row.head == [own.head[0].as_str(), *name]);
                let pair = own
                    .median(metric)
                    .zip(other.and_then(|it| it.median(metric)));
                line.push(
                    pair.map_or_else(String::new, |(own, other)| format!("{:.2}", own / other)),
                );
            }
            table.push(line);
        }
    }
    table
}

/// Whether a column is measured by applications unless columns are chosen.
pub fn usual(column: &Column) -> bool {
    column.kind != Kind::Floor
}

/// Runs a client to its end on one CPU; what it printed, and what it used of the CPU.
fn client_output(
    place: &Container,
    user: &str,
    cpu: usize,
    command: &[&str],
) -> Result<(String, Duration), String> {
    let patience = Duration::from_secs(120);
    let cpu = cpu.to_string();
    let mut whole = place.command("taskset");
    whole.args(["--cpu-list", &cpu, "setpriv"]);
    whole.args(as_user(user)).args(command);
    whole.stdin(Stdio::null());
    let before = used_by_children()?;
    let begun = Instant::now();
    let output =
        output_within(whole, patience).map_err(|error| format!("{}: {error}", command[0]))?;
    let used = used_by_children()? - before;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let took = begun.elapsed();
        return Err(format!(
            "{} ended after {took:?} with {}: {errors}{said}",
            command[0], output.status
        ));
    }
    Ok((said, used))
}

/// User and system time of children that have ended and were waited for.
fn used_by_children() -> Result<Duration, String> {
    let usage =
        getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|error| format!("getrusage: {error}"))?;
    let microseconds = [usage.user_time(), usage.system_time()]
        .map(|time| time.tv_sec() * 1_000_000 + time.tv_usec());
    let sum: i64 = microseconds.iter().sum();
    Ok(Duration::from_micros(
        u64::try_from(sum).unwrap_or_default(),
    ))
}

/// Median and 99th percentile.
fn quantiles(mut latencies: Vec<f64>) -> Result<[f64; 2], String> {
    latencies.sort_by(f64::total_cmp);
    let at = |share: f64| {
        latencies
            .get((latencies.len() as f64 * share) as usize)
            .copied()
    };
    match (at(0.5), at(0.99)) {
        (Some(median), Some(high)) => Ok([median, high]),
        _ => Err("no request was answered".to_owned()),
    }
}
