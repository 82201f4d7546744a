//! The fast path's programs and maps: the only place that speaks aya.
//!
//! Everything lives below one bpffs directory and outlives the daemon:
//!
//! ```text
//! /sys/fs/bpf/oncache/links/<device>:<program>         tcx links
//! /sys/fs/bpf/oncache/links/<device>:<program>-netkit  links to a netkit device's peer hook
//! /sys/fs/bpf/oncache/maps/<abi>-<flows>/<MAP>         maps of one layout and size
//! ```
//!
//! A daemon that starts loads its programs over the pinned maps and replaces the programs in the
//! pinned links, each atomically: no packet meets a device without a program.

pub mod attach;
pub mod caches;
pub mod clock;
pub mod counters;
pub mod epoch;
pub mod foreign;
pub mod load;
pub mod netkit_link;
pub mod pins;
mod test_run;
mod upkeep;

use std::{io, path::PathBuf};

use aya::{
    Ebpf, EbpfError,
    maps::{HashMap, MapData, MapError, PerCpuArray},
    programs::{ProgramError, SchedClassifier},
};
use oncache_abi::{
    container::LocalContainer,
    entry::FlowEntry,
    flow::FlowKey,
    peer::{PeerHeaders, PeerNumber},
    reason::Program,
};
use thiserror::Error;

pub use attach::{AttachMode, Attachment};
pub use epoch::Epoch;
pub use load::Sizes;
pub use test_run::{PacketContext, RunOutcome};
pub use upkeep::Present;

/// Where the data path is pinned.
pub const PIN_ROOT: &str = "/sys/fs/bpf/oncache";

/// The loaded programs and their maps.
pub struct Datapath {
    root: PathBuf,
    mode: AttachMode,
    programs: Ebpf,
    settings: epoch::InForce,
    counters: PerCpuArray<MapData, u64>,
    flows: HashMap<MapData, FlowKey, FlowEntry>,
    peers: HashMap<MapData, PeerNumber, PeerHeaders>,
    containers: HashMap<MapData, u32, LocalContainer>,
    /// The bridge's MAC address, which containers see as the sender of all they get.
    gateway: [u8; 6],
}

/// What can fail between the daemon and the data path.
#[derive(Debug, Error)]
pub enum DatapathError {
    /// A file or directory on the bpffs.
    #[error("{action} {path}: {source}; is a bpffs mounted there (mount -t bpf bpf /sys/fs/bpf)?")]
    Pin {
        /// What was being done.
        action: &'static str,
        /// The pin.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error("load the eBPF programs: {}; `oncache check` says what the kernel lacks", chain(.0))]
    Load(#[from] EbpfError),
    /// The kernel refused a program.
    #[error("load program {program}: {}; `oncache check` says what the kernel lacks", chain(.source))]
    Program {
        /// The program.
        program: &'static str,
        /// The kernel's answer, with the verifier's log.
        source: ProgramError,
    },
    /// The kernel would not run a program on a packet.
    #[error("run program {program}: {}", chain(.source))]
    Run {
        /// The program.
        program: &'static str,
        /// The kernel's answer.
        source: ProgramError,
    },
    /// A program could not be attached or replaced.
    #[error("attach program {program} to {device}: {reason}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The device.
        device: String,
        /// The kernel's answer.
        reason: String,
    },
    /// The object lacks a map or program: it was built from other sources than the daemon.
    #[error("the eBPF object has no {0}; the build is inconsistent")]
    Missing(&'static str),
    /// A map operation failed.
    #[error("{action} map {map}: {}", chain(.source))]
    Map {
        /// What was being done.
        action: &'static str,
        /// The map.
        map: &'static str,
        /// The kernel's answer.
        source: MapError,
    },
    /// The grace period after a new epoch could not be waited for.
    #[error("wait for running programs after the new epoch: {0}")]
    Grace(io::Error),
}

/// A program of the object.
fn classifier(
    programs: &mut Ebpf,
    program: Program,
) -> Result<&mut SchedClassifier, DatapathError> {
    let name = program.name();
    programs
        .program_mut(name)
        .ok_or(DatapathError::Missing(name))?
        .try_into()
        .map_err(|source| DatapathError::Program {
            program: name,
            source,
        })
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    // A verifier log has thousands of lines; its last ones say what was wrong.
    let lines: Vec<&str> = line.lines().collect();
    let tail = lines.len().saturating_sub(6);
    lines[tail..].join(" | ")
}

/// Wraps a map error with what was being done.
fn map_error(action: &'static str, map: &'static str) -> impl FnOnce(MapError) -> DatapathError {
    move |source| DatapathError::Map {
        action,
        map,
        source,
    }
}
