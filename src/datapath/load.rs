//! Loading the programs over the pinned maps.

use std::path::Path;

use aya::{
    EbpfLoader,
    maps::{Array, HashMap, Map, PerCpuArray},
};
use oncache_abi::{reason::Program, settings::Constants};

use super::{AttachMode, Datapath, DatapathError, Epoch, classifier, map_error, pins};

/// The programs, built from `bpf/` (see `build.rs`). ELF sections are read at 8-byte alignment.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/oncache.bpf.o"));

/// Sizes of the maps, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Flows.
    pub flows: u32,
}

impl Datapath {
    /// Loads the programs with `constants` over the maps pinned below `root`, which are made where
    /// they are not there. Attaches nothing. Returns with them the right to raise the epoch.
    ///
    /// # Errors
    ///
    /// [`DatapathError`]: no bpffs, or the kernel refused a map or program.
    pub fn load(
        root: &Path,
        constants: &Constants,
        sizes: Sizes,
        mode: AttachMode,
    ) -> Result<(Self, Epoch), DatapathError> {
        let maps = pins::maps(root, sizes);
        pins::create(&maps)?;
        pins::create(&pins::links(root))?;
        let mut programs = EbpfLoader::new()
            .override_global("CONSTANTS", constants, true)
            .map_max_entries("FLOWS", sizes.flows)
            .default_map_pin_directory(&maps)
            .load(OBJECT)?;
        for program in Program::ALL {
            let loaded = classifier(&mut programs, program)?;
            loaded.load().map_err(|source| DatapathError::Program {
                program: program.name(),
                source,
            })?;
        }
        let mut take = |name: &'static str| -> Result<Map, DatapathError> {
            programs.take_map(name).ok_or(DatapathError::Missing(name))
        };
        let opened = "open";
        let epoch = Epoch::new(
            Array::try_from(take("SETTINGS")?).map_err(map_error(opened, "SETTINGS"))?,
            constants.mark_mask,
        );
        let datapath = Self {
            root: root.to_owned(),
            mode,
            settings: epoch.in_force(),
            counters: PerCpuArray::try_from(take("COUNTERS")?)
                .map_err(map_error(opened, "COUNTERS"))?,
            flows: HashMap::try_from(take("FLOWS")?).map_err(map_error(opened, "FLOWS"))?,
            peers: HashMap::try_from(take("PEERS")?).map_err(map_error(opened, "PEERS"))?,
            containers: HashMap::try_from(take("CONTAINERS")?)
                .map_err(map_error(opened, "CONTAINERS"))?,
            gateway: constants.gateway,
            programs,
        };
        Ok((datapath, epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A function of the toolchain's `core` may have no BTF, and then no program of the object that
    /// calls it is accepted; which toolchains that holds for does not show here.
    #[test]
    fn no_program_calls_a_function_of_the_toolchain() {
        for name in ["memcmp", "bcmp"] {
            let symbol = format!("\0{name}\0");
            let found = OBJECT
                .windows(symbol.len())
                .any(|bytes| bytes == symbol.as_bytes());
            assert!(
                !found,
                "{name}: compare word by word, see `programs/egress_init.rs`"
            );
        }
    }

    /// Nor does it name a directory of the machine that it was built on.
    #[test]
    fn the_object_is_the_same_wherever_it_is_built() {
        let here = env!("CARGO_MANIFEST_DIR");
        let found = OBJECT
            .windows(here.len())
            .any(|bytes| bytes == here.as_bytes());
        assert!(!found, "{here}: see `nameless_paths` in build.rs");
    }
}
