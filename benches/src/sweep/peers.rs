//! Ever more hosts.

use std::{net::Ipv4Addr, path::Path};

use oncache_testbed::{Config, Host, Peer};

use super::{column, steps, traffic};
use crate::{
    column::{Bed, Wire},
    daemon,
    metric::{Row, thousands},
    rounds::Effort,
    traffic::Workload,
};

const STEPS: [u32; 4] = [1, 100, 1_000, 5_000];
/// How often the daemon is started and reloaded.
const REPEATS: usize = 3;

/// Measures the steps up to `most`.
pub fn run(oncache: &Path, effort: Effort, most: u32) -> Result<Vec<Row>, String> {
    let mut beds = Vec::new();
    for count in steps(&STEPS, most) {
        eprintln!("{count} peers");
        let wide = |config: Config| config.network("10.0.0.0/8");
        let mut bed = Bed::with(&column(oncache), Wire::Whole, wide)?;
        let mut row = Row::new([thousands(count.into())]);
        let alpha = bed.lab.alpha();
        let config = |count| {
            let peers = peers(bed.lab.beta(), count);
            wide(alpha.default_config()).peers(peers).to_string()
        };
        let (all, one_less) = (config(count), config(count - 1));
        alpha.write_config(&all);
        for _ in 0..REPEATS {
            row.push(
                "ready after a cold start, s",
                daemon::cold_start(alpha).as_secs_f64(),
            );
        }
        let client = alpha.add_container("client");
        for _ in 0..REPEATS {
            row.push(
                "ready after a warm start, s",
                daemon::warm_start(alpha).as_secs_f64(),
            );
        }
        for _ in 0..REPEATS {
            let same = daemon::reload(alpha, &all)?;
            row.push("reload of the same, s", same.as_secs_f64());
            daemon::reload(alpha, &one_less)?;
            let one = daemon::reload(alpha, &all)?;
            row.push("reload with one peer more, s", one.as_secs_f64());
        }
        bed.client = client;
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

/// So many peers, of which the first is there and the others are not.
fn peers(there: &Host, count: u32) -> Vec<Peer> {
    let absent = (1..=count).map(|number| {
        let [.., high, low] = number.to_be_bytes();
        Peer {
            name: format!("absent-{number}"),
            address: Ipv4Addr::new(192, 168, 100 + high, low),
            subnet: format!("10.{}.{low}.0/24", 100 + high),
        }
    });
    let mut all = vec![there.as_peer()];
    all.extend(absent);
    all.truncate(usize::try_from(count).expect("few"));
    all
}
