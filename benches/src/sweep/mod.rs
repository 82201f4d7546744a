//! Sweeps: the same with ever more flows, peers or containers.

mod containers;
mod crowd;
mod flows;
mod peers;

use std::path::Path;

use crate::{
    column::{Bed, Column, Kind},
    metric::Row,
    programs::times,
    rounds::{Cell, Effort, once},
    traffic::Workload,
};

/// Of what there is more and more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Sweep {
    /// Entries of the filter cache.
    Flows,
    /// Other hosts.
    Peers,
    /// Containers of one host.
    Containers,
    /// Flows that take turns, more than the filter cache has places.
    Crowd,
}

impl Sweep {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Flows, Self::Peers, Self::Containers, Self::Crowd];

    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flows => "flows",
            Self::Peers => "peers",
            Self::Containers => "containers",
            Self::Crowd => "crowd",
        }
    }

    /// Measures it, telling how far it is. `variants` are other columns, for what is compared with the
    /// plain overlay.
    pub fn run(
        self,
        oncache: &Path,
        variants: &[Column],
        effort: Effort,
        most: u32,
    ) -> Result<Vec<Row>, String> {
        match self {
            Self::Flows => flows::run(oncache, effort, most),
            Self::Peers => peers::run(oncache, effort, most),
            Self::Containers => containers::run(oncache, effort, most),
            Self::Crowd => crowd::run(oncache, variants, effort, most),
        }
    }

    /// What the plot shows: metrics whose name begins so.
    pub const fn plotted(self) -> &'static [&'static str] {
        match self {
            Self::Flows => &[flows::ALONE, flows::SPREAD],
            Self::Peers => &[
                "ready after a cold start",
                "ready after a warm start",
                "RSS",
            ],
            Self::Containers => &["last added", "ready after a warm start", "RSS"],
            Self::Crowd => &crowd::PLOTTED,
        }
    }
}

/// The steps up to a number.
fn steps(all: &[u32], most: u32) -> impl Iterator<Item = u32> + '_ {
    all.iter().copied().filter(move |step| *step <= most)
}

/// The column that is swept.
fn column(oncache: &Path) -> Column {
    Column {
        name: "oncache".to_owned(),
        kind: Kind::Oncache,
        oncache: oncache.to_owned(),
    }
}

/// Rounds of each workload on every bed in turn; notes the cost by `name`, and the hit ratio.
fn traffic<'a>(
    beds: &mut [(Bed, Row)],
    workloads: impl Fn(usize) -> Vec<(&'a str, Workload)>,
    effort: Effort,
) -> Result<(), String> {
    for round in 1..=effort.rounds {
        eprintln!("round {round} of {}", effort.rounds);
        for (number, (bed, row)) in beds.iter_mut().enumerate() {
            for (name, workload) in workloads(number) {
                let mut cell = Cell::default();
                once(bed, workload, effort, &mut cell)?;
                row.push(name, cell.cost.median());
                row.push("hit ratio, %", cell.hit_ratio.median() * 100.0);
            }
        }
    }
    for (number, (bed, row)) in beds.iter_mut().enumerate() {
        for (name, workload) in workloads(number) {
            for time in times(bed, workload, effort.cpu, effort.program_time)? {
                let what = name.split(',').next().unwrap_or(name);
                row.push(&format!("{}, ns, {what}", time.program), time.median);
            }
        }
    }
    Ok(())
}
