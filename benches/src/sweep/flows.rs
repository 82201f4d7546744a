//! Ever more flows in the filter cache.

use std::path::Path;

use super::{column, steps, traffic};
use crate::{
    column::{Bed, Wire},
    daemon, entries,
    metric::{Row, thousands},
    rounds::Effort,
    traffic::Workload,
};

const STEPS: [u32; 4] = [1, 1_000, 65_536, 1_000_000];
/// What the cache has room for beyond the flows that are swept: those of the rest of the traffic.
const MARGIN: u32 = 2048;
const MIB: f64 = 1024.0 * 1024.0;

/// All packets of one flow.
pub const ALONE: &str = "one flow, us per packet";
/// Each packet of another flow than the last, taken at random.
pub const SPREAD: &str = "all flows, us per packet";

/// Measures the steps up to `most`.
pub fn run(oncache: &Path, effort: Effort, most: u32) -> Result<Vec<Row>, String> {
    let mut beds = Vec::new();
    let sizes: Vec<u32> = steps(&STEPS, most).collect();
    for flows in &sizes {
        let room = flows + MARGIN;
        let bed = Bed::with(&column(oncache), Wire::Whole, |config| config.flows(room))?;
        beds.push((bed, Row::new([thousands((*flows).into())])));
    }
    for ((bed, _), flows) in beds.iter().zip(&sizes) {
        // So that all that is not of one flow is learned: where the other container is.
        let warm = Effort {
            rounds: 1,
            ..effort
        };
        crate::rounds::once(bed, Workload::UdpRounds, warm, &mut Default::default())?;
        entries::enter(bed, *flows)?;
    }
    traffic(
        &mut beds,
        |number| {
            vec![
                (ALONE, Workload::Spread(1)),
                (SPREAD, Workload::Spread(sizes[number])),
                ("UDP_RR, us per transaction", Workload::UdpRounds),
            ]
        },
        effort,
    )?;
    for ((bed, row), flows) in beds.iter_mut().zip(&sizes) {
        let live = entries::live(bed.lab.alpha())?;
        if live < *flows as usize {
            return Err(format!("of {flows} entries only {live} are left and live"));
        }
        row.push_whole("live entries", live as u64);
        let (filter, all) = entries::memory(bed.lab.alpha())?;
        row.push("filter cache, MiB", filter as f64 / MIB);
        row.push("all maps, MiB", all as f64 / MIB);
        let (now, peak) = daemon::memory(bed.lab.alpha())?;
        row.push("RSS of the daemon, MB", now);
        row.push("peak, MB", peak);
    }
    Ok(beds.into_iter().map(|(_, row)| row).collect())
}
