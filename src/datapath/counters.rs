//! Reading the counters.

use oncache_abi::reason::{Program, REASONS_PER_PROGRAM, Reason};
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

impl Datapath {
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
                let values = self
                    .counters
                    .get(&index, 0)
                    .map_err(map_error("read", "COUNTERS"))?;
                let packets = values.iter().sum();
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
