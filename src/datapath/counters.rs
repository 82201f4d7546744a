//! Reading the counters.

use aya::maps::{MapError, PerCpuValues};
use oncache_abi::{
    reason::{Program, REASONS_PER_PROGRAM, Reason},
    turnover::{Turnover, evicted},
};
use serde::{Deserialize, Serialize};

use super::{Datapath, DatapathError, map_error};

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The program's name.
    pub program: String,
    /// The reason's name.
    pub reason: String,
    /// Packets since the maps were made; an aggregate counts once.
    pub packets: u64,
    /// The reason in words.
    pub meaning: String,
}

/// Flows that came into `FLOWS` and left it, since the maps were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowTurnover {
    /// Entered: flows that were learned and not there.
    pub entered: u64,
    /// Taken out: closed by the beginning or end of a connection, taken away by the sweep, by a flush, with their
    /// container.
    pub removed: u64,
    /// There now, dead ones included.
    pub present: u64,
    /// Evicted: had to give way to others. Reckoned from the rest, for the kernel does not tell. What
    /// is learned while it is reckoned shows in one of the figures and not in the other, and a flow
    /// whose two directions are learned at the same moment may count as two.
    pub evicted: u64,
}

impl Datapath {
    /// Flows that came into `FLOWS` and left it.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be read.
    pub fn turnover(&self) -> Result<FlowTurnover, DatapathError> {
        let entered = self.sum(Turnover::Entered.index())?;
        let removed = self.sum(Turnover::Removed.index())?;
        let cleared = self.sum(Turnover::Cleared.index())?;
        let present = self.open_flows().len() as u64;
        Ok(FlowTurnover {
            entered,
            removed: removed + cleared,
            present,
            evicted: evicted(entered, removed, cleared, present),
        })
    }

    /// Counts flows that the daemon has taken out. The programs do not write this counter.
    pub(super) fn note_cleared(&mut self, flows: usize) -> Result<(), DatapathError> {
        if flows == 0 {
            return Ok(());
        }
        let index = Turnover::Cleared.index();
        let values = self
            .counters
            .get(&index, 0)
            .map_err(map_error("read", "COUNTERS"))?;
        let mut values = values.to_vec();
        if let Some(first) = values.first_mut() {
            *first += flows as u64;
        }
        let written = PerCpuValues::try_from(values)
            .map_err(MapError::from)
            .and_then(|values| self.counters.set(index, values, 0));
        written.map_err(map_error("write", "COUNTERS"))
    }

    /// A counter, summed over the CPUs.
    fn sum(&self, index: u32) -> Result<u64, DatapathError> {
        let values = self
            .counters
            .get(&index, 0)
            .map_err(map_error("read", "COUNTERS"))?;
        Ok(values.iter().sum())
    }

    /// All counters that are not zero, summed over the CPUs.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be read.
    pub fn counters(&self) -> Result<Vec<Count>, DatapathError> {
        let mut counts = Vec::new();
        for program in Program::ALL {
            for reason in Reason::ALL {
                let index = program as u32 * REASONS_PER_PROGRAM + *reason as u32;
                let packets = self.sum(index)?;
                if packets != 0 {
                    counts.push(Count {
                        program: program.name().to_owned(),
                        reason: reason.name().to_owned(),
                        packets,
                        meaning: reason.describe().to_owned(),
                    });
                }
            }
        }
        Ok(counts)
    }
}
