//! What the programs take, by the kernel's own clock (`BPF_ENABLE_STATS`), packet for packet of
//! real traffic.
//!
//! The counters are read every few milliseconds: the median of these windows is the figure, the
//! least of them is what is left when nobody disturbs.

use std::{
    thread,
    time::{Duration, Instant},
};

use aya::{
    programs::{ProgramInfo, SchedClassifier, TcAttachType},
    sys::{Stats, enable_stats},
};
use oncache_testbed::{Host, UNDERLAY};

use crate::{
    column::{Bed, Kind},
    floor,
    traffic::{Workload, measure},
};

/// How long a window is.
const WINDOW: Duration = Duration::from_millis(5);
/// Fewer runs in a window say nothing.
const LEAST_RUNS: u64 = 20;

/// One program's time.
#[derive(Clone, Debug)]
pub struct ProgramTime {
    pub program: &'static str,
    /// Nanoseconds a run: least, median.
    pub least: f64,
    pub median: f64,
    /// Runs that were measured.
    pub runs: u64,
    /// Bytes of machine code.
    pub code: u32,
}

/// A program and where it is attached.
#[derive(Clone, Copy)]
struct Place {
    program: &'static str,
    device: &'static str,
    hook: TcAttachType,
    on_client: bool,
}

const fn place(
    program: &'static str,
    device: &'static str,
    hook: TcAttachType,
    on_client: bool,
) -> Place {
    Place {
        program,
        device,
        hook,
        on_client,
    }
}

/// What a packet from the client to the server passes by the fast path. `egress_init` does next to
/// nothing there, one test of the mark: its time is what measuring costs.
const ONCACHE: [Place; 3] = [
    place("egress", "onc-client", TcAttachType::Ingress, true),
    place("egress_init", UNDERLAY, TcAttachType::Egress, true),
    place("ingress", UNDERLAY, TcAttachType::Ingress, false),
];

/// What a packet that misses passes: all four.
const MISSED: [Place; 4] = [
    ONCACHE[0],
    ONCACHE[1],
    ONCACHE[2],
    place("ingress_init", "onc-server", TcAttachType::Egress, false),
];

/// Likewise of the `floor` column.
const FLOOR: [Place; 2] = [
    place("floor_out", floor::DEVICE, TcAttachType::Ingress, true),
    place("floor_in", UNDERLAY, TcAttachType::Ingress, false),
];

/// Run time, runs and code size of a program at one moment.
type Sample = (Duration, u64, u32);

/// Measures the column's programs while a workload runs; none for a column that has none.
pub fn times(
    bed: &Bed,
    workload: Workload,
    cpu: usize,
    time: Duration,
) -> Result<Vec<ProgramTime>, String> {
    let places: &[Place] = match bed.column.kind {
        Kind::Oncache if matches!(workload, Workload::Crowd(_)) => &MISSED,
        Kind::Oncache => &ONCACHE,
        Kind::Floor => &FLOOR,
        _ => return Ok(Vec::new()),
    };
    let _counting =
        enable_stats(Stats::RunTime).map_err(|error| format!("BPF_ENABLE_STATS: {error}"))?;
    let warm = Duration::from_millis(100);
    thread::scope(|scope| {
        let traffic = scope.spawn(|| measure(workload, &bed.client, &bed.server, cpu, warm, time));
        thread::sleep(warm);
        let [client, server] = bed.hosts();
        let sampling: Vec<_> = places
            .iter()
            .map(|place| {
                let host = if place.on_client { client } else { server };
                scope.spawn(move || host.enter(|| sample(host, *place, time)))
            })
            .collect();
        let all: Vec<_> = sampling
            .into_iter()
            .map(|it| it.join().expect("sampling reports"))
            .collect();
        traffic.join().expect("traffic reports")?;
        let mut times = Vec::new();
        for (place, samples) in places.iter().zip(all) {
            match judge(place.program, &samples?) {
                Some(time) => times.push(time),
                // Where all is carried nothing is learned.
                None if matches!(workload, Workload::Crowd(_)) => {}
                None => {
                    let name = place.program;
                    return Err(format!("{name} has not run often enough to be measured"));
                }
            }
        }
        Ok(times)
    })
}

/// A program's run time, runs and code size, every window.
fn sample(host: &Host, place: Place, time: Duration) -> Result<Vec<Sample>, String> {
    let begun = Instant::now();
    let mut samples = Vec::new();
    while begun.elapsed() < time {
        let info = attached(place).map_err(|error| {
            format!(
                "{}: {} at {}: {error}",
                host.name, place.program, place.device
            )
        })?;
        samples.push((info.run_time(), info.run_count(), info.size_jitted()));
        thread::sleep(WINDOW);
    }
    Ok(samples)
}

fn attached(place: Place) -> Result<ProgramInfo, String> {
    let (_, programs) =
        SchedClassifier::query_tcx(place.device, place.hook).map_err(|error| error.to_string())?;
    programs
        .into_iter()
        .find(|info| info.name_as_str() == Some(place.program))
        .ok_or_else(|| "not attached".to_owned())
}

/// None if the program has not run often enough to be measured.
fn judge(program: &'static str, samples: &[Sample]) -> Option<ProgramTime> {
    let mut windows = Vec::new();
    let mut runs = 0;
    for pair in samples.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        let count = after.1 - before.1;
        if count >= LEAST_RUNS {
            windows.push((after.0 - before.0).as_nanos() as f64 / count as f64);
            runs += count;
        }
    }
    windows.sort_by(f64::total_cmp);
    let least = *windows.first()?;
    Some(ProgramTime {
        program,
        least,
        median: windows[windows.len() / 2],
        runs,
        code: samples[0].2,
    })
}
