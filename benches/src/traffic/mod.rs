//! The workloads: threads on one CPU that count what they have done until told to stop.

mod crowd;
mod run;
pub mod spread;
mod tcp;
mod udp;
mod workload;

use std::{
    io, thread,
    time::{Duration, Instant},
};

use oncache_testbed::Container;

use self::run::Run;
pub use self::workload::Workload;
use crate::cpu::SoftirqDaemon;

/// What one run gave.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// In `rate_unit`, by the clock on the wall: true only where nobody else wants the CPU.
    pub rate: f64,
    /// In `cost_unit`, of both ends and all that is between them.
    pub cost: f64,
    /// The share of the wall's time in which the ends ran: below one, others had the CPU.
    pub share: f64,
}

/// Runs a workload for `warm` and then `time`, and measures the latter.
pub fn measure(
    workload: Workload,
    client: &Container,
    server: &Container,
    cpu: usize,
    warm: Duration,
    time: Duration,
) -> Result<Figure, String> {
    let run = Run::default();
    let softirqs = SoftirqDaemon::of(cpu)?;
    let said = |error: io::Error| format!("{workload}: sockets: {error}");
    let figure = thread::scope(|scope| {
        let begun = start(workload, client, server, cpu, &run, scope);
        let measured = begun
            .map_err(said)
            .and_then(|ends| observe(workload, &run, ends, &softirqs, warm, time));
        run.stop();
        measured
    })?;
    match run.failure() {
        Some(error) => Err(format!("{workload}: {error}")),
        None => Ok(figure),
    }
}

fn observe(
    workload: Workload,
    run: &Run,
    ends: usize,
    softirqs: &SoftirqDaemon,
    warm: Duration,
    time: Duration,
) -> Result<Figure, String> {
    let begun = Instant::now();
    while run.begun() < ends {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(warm.saturating_sub(begun.elapsed()));
    let snapshot = || (Instant::now(), run.counted(), run.used(softirqs));
    let (at, counted, used) = snapshot();
    thread::sleep(time);
    let (end, counted_then, used_then) = snapshot();
    let counted = counted_then - counted;
    if counted == 0 {
        let why = run
            .failure()
            .unwrap_or_else(|| "no error was reported".to_owned());
        return Err(format!("{workload}: nothing arrived in {time:?}: {why}"));
    }
    let (wall, used) = ((end - at).as_secs_f64(), (used_then - used).as_secs_f64());
    Ok(Figure {
        rate: workload.rate(counted, wall),
        cost: used * 1e6 / workload.units(counted),
        share: used / wall,
    })
}

/// Starts the ends, and says how many threads they are.
fn start<'scope>(
    workload: Workload,
    client: &Container,
    server: &Container,
    cpu: usize,
    run: &'scope Run,
    scope: &'scope thread::Scope<'scope, '_>,
) -> io::Result<usize> {
    match workload {
        Workload::UdpRounds => {
            let (here, there) = udp::ends(client, server)?;
            scope.spawn(move || run.end(cpu, || udp::ask(run, &here)));
            scope.spawn(move || run.end(cpu, || udp::answer(run, &there)));
            Ok(2)
        }
        Workload::Datagrams(size) => {
            let (here, there) = udp::ends(client, server)?;
            scope.spawn(move || run.end(cpu, || udp::bursts(run, &here, &there, size)));
            Ok(1)
        }
        Workload::TcpRounds => {
            let (here, there) = tcp::connection(client, server)?;
            scope.spawn(move || run.end(cpu, || tcp::ask(run, here)));
            scope.spawn(move || run.end(cpu, || tcp::answer(run, there)));
            Ok(2)
        }
        Workload::TcpStreams(flows) => {
            for _ in 0..flows {
                let (here, there) = tcp::connection(client, server)?;
                scope.spawn(move || run.end(cpu, || tcp::send(run, here)));
                scope.spawn(move || run.end(cpu, || tcp::receive(run, there)));
            }
            Ok(2 * flows)
        }
        Workload::Spread(flows) => {
            let ends = spread::Ends::new(client, server, flows)?;
            scope.spawn(move || run.end(cpu, || ends.bursts(run)));
            Ok(1)
        }
        Workload::Crowd(flows) => {
            let ends = crowd::Ends::new(client, server, flows)?;
            scope.spawn(move || run.end(cpu, || ends.exchange(run)));
            Ok(1)
        }
        Workload::TcpConnections => {
            let listener = tcp::listener(server)?;
            let address = listener.local_addr()?;
            let place = client.clone();
            scope
                .spawn(move || place.enter(|| run.end(cpu, || tcp::connect_and_ask(run, address))));
            scope.spawn(move || run.end(cpu, || tcp::accept_and_answer(run, &listener)));
            Ok(2)
        }
    }
}
