//! The traffic, and what is measured of it.

use std::{
    fmt,
    fs::read_to_string,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use oncache_testbed::{
    Container, Lab, output_within,
    traffic::{Rounds, RoundsReport},
};
use serde_json::Value;

/// How long a server may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Two containers on each host, in pairs across the wire.
pub struct Containers {
    pub pairs: [(Container, Container); 2],
}

impl Containers {
    /// Adds them by `oncache container add`.
    pub fn new(lab: &Lab) -> Self {
        let pair = |from, to| {
            (
                lab.alpha().add_container(from),
                lab.beta().add_container(to),
            )
        };
        Self {
            pairs: [pair("a1", "b1"), pair("a2", "b2")],
        }
    }

    /// All four.
    pub fn all(&self) -> impl Iterator<Item = &Container> {
        self.pairs.iter().flat_map(|(from, to)| [from, to])
    }
}

/// A kind of traffic.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    TcpStream,
    TcpPairs,
    UdpStream,
    TcpRounds,
    UdpRounds,
}

impl Workload {
    pub const ALL: [Self; 5] = [
        Self::TcpStream,
        Self::TcpPairs,
        Self::UdpStream,
        Self::TcpRounds,
        Self::UdpRounds,
    ];

    /// The head of its column.
    pub fn short(self) -> &'static str {
        match self {
            Self::TcpStream => "TCP",
            Self::TcpPairs => "TCP 2 pairs",
            Self::UdpStream => "UDP",
            Self::TcpRounds => "TCP req/resp",
            Self::UdpRounds => "UDP req/resp",
        }
    }

    /// What its numbers are.
    pub fn unit(self) -> &'static str {
        match self {
            Self::TcpStream | Self::TcpPairs | Self::UdpStream => "Gbit/s",
            Self::TcpRounds | Self::UdpRounds => "rounds/s",
        }
    }

    /// One of its numbers.
    pub fn format(self, value: f64) -> String {
        match self.unit() {
            "Gbit/s" => format!("{value:.2}"),
            _ => format!("{value:.0}"),
        }
    }

    /// Makes the traffic for that long.
    pub fn run(self, containers: &Containers, time: Duration) -> Result<f64, String> {
        let [(from, to), second] = &containers.pairs;
        match self {
            Self::TcpStream => iperf3(from, to, time, &[]),
            Self::UdpStream => iperf3(from, to, time, &["-u", "-b", "0", "-l", "1400"]),
            Self::TcpPairs => thread::scope(|scope| {
                let other = scope.spawn(|| iperf3(&second.0, &second.1, time, &[]));
                let one = iperf3(from, to, time, &[]);
                let other = other
                    .join()
                    .map_err(|_| "the second pair failed".to_owned())?;
                Ok(one? + other?)
            }),
            Self::TcpRounds => rate(&Rounds::lasting(time).tcp(from, to, 0)),
            Self::UdpRounds => rate(&Rounds::lasting(time).udp(from, to, 0)),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TcpStream => "TCP, one stream (iperf3)",
            Self::TcpPairs => "TCP, two pairs at once (iperf3)",
            Self::UdpStream => "UDP, 1400 bytes, received (iperf3)",
            Self::TcpRounds => "TCP, request and response, 64 bytes",
            Self::UdpRounds => "UDP, request and response, 64 bytes",
        })
    }
}

fn rate(report: &RoundsReport) -> Result<f64, String> {
    if report.error.is_some() || report.wrong > 0 || report.completed == 0 {
        return Err(report.to_string());
    }
    Ok(report.rate())
}

/// Runs a server for one test and a client; returns what the server has received, in Gbit/s.
fn iperf3(
    from: &Container,
    to: &Container,
    time: Duration,
    arguments: &[&str],
) -> Result<f64, String> {
    let address = to.ip.to_string();
    let mut command = to.command("iperf3");
    command.args(["-s", "-1", "-B", &address]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut server = to.spawn(command);
    let deadline = Instant::now() + PATIENCE;
    while !to.enter(listens) {
        if Instant::now() > deadline {
            return Err(format!("the iperf3 server in {} does not listen", to.name));
        }
        thread::sleep(Duration::from_millis(5));
    }
    let seconds = time.as_secs().to_string();
    let mut command = from.command("iperf3");
    command
        .args(["-c", &address, "-J", "-t", &seconds])
        .args(arguments);
    let output = output_within(command, time + PATIENCE).map_err(|error| error.to_string())?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("iperf3 in {} printed no report: {error}", from.name))?;
    if let Some(error) = report["error"].as_str() {
        return Err(format!("iperf3 in {}: {error}", from.name));
    }
    if server.wait_within(PATIENCE).is_none() {
        return Err(format!("the iperf3 server in {} does not end", to.name));
    }
    match report["end"]["sum_received"]["bits_per_second"].as_f64() {
        Some(rate) if rate > 0.0 => Ok(rate / 1e9),
        _ => Err(format!(
            "{} has received nothing from {}",
            to.name, from.name
        )),
    }
}

/// Whether anybody here listens at iperf3's port, 5201.
fn listens() -> bool {
    let sockets = read_to_string("/proc/thread-self/net/tcp").unwrap_or_default();
    sockets.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(":1451")) && fields.nth(1) == Some("0A")
    })
}
