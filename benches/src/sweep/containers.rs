//! Ever more containers on a host.

use std::{path::Path, time::Instant};

use super::{column, steps, traffic};
use crate::{
    column::{Bed, Wire},
    daemon,
    metric::{Row, thousands},
    rounds::Effort,
    traffic::Workload,
};

const STEPS: [u32; 4] = [1, 10, 100, 250];
/// How often the daemon is started and reloaded.
const REPEATS: usize = 3;

/// Measures the steps up to `most`.
pub fn run(oncache: &Path, effort: Effort, most: u32) -> Result<Vec<Row>, String> {
    let mut beds = Vec::new();
    for count in steps(&STEPS, most) {
        eprintln!("{count} containers");
        let bed = Bed::new(&column(oncache), Wire::Whole)?;
        let mut row = Row::new([thousands(count.into())]);
        let alpha = bed.lab.alpha();
        let add = |name: &str| {
            let begun = Instant::now();
            alpha.oncache_ok(&["container", "add", name]);
            begun.elapsed().as_secs_f64() * 1e3
        };
        // The client is one of them.
        for number in 1..count {
            row.push("each added, ms", add(&format!("c{number}")));
        }
        for _ in 0..REPEATS {
            row.push("last added, ms", add("last"));
            alpha.oncache_ok(&["container", "del", "last"]);
        }
        for _ in 0..REPEATS {
            row.push(
                "ready after a warm start, s",
                daemon::warm_start(alpha).as_secs_f64(),
            );
        }
        let config = alpha.default_config().to_string();
        for _ in 0..REPEATS {
            row.push("reload, s", daemon::reload(alpha, &config)?.as_secs_f64());
        }
        beds.push((bed, row));
    }
    traffic(
        &mut beds,
        |_| vec![("UDP_RR, us per transaction", Workload::UdpRounds)],
        effort,
    )?;
    for (bed, row) in &mut beds {
        let (now, peak) = daemon::memory(bed.lab.alpha())?;
        row.push("RSS of the daemon, MB", now);
        row.push("peak, MB", peak);
    }
    Ok(beds.into_iter().map(|(_, row)| row).collect())
}
