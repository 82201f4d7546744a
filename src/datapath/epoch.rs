//! The epoch and the other settings that change while the programs run.

use std::{io, time::Duration};

use oncache_abi::settings::Settings;

use super::{Datapath, DatapathError, clock, map_error};

/// What the daemon sets besides the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// How long an entry serves.
    pub lease: Duration,
    /// Outer UDP source ports, lowest and highest.
    pub ports: (u16, u16),
    /// Fingerprint of all that cached results depend on and that no notification would tell of.
    pub fingerprint: u32,
}

impl Datapath {
    /// The settings in force.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be read.
    pub fn settings(&self) -> Result<Settings, DatapathError> {
        self.settings
            .get(&0, 0)
            .map_err(map_error("read", "SETTINGS"))
    }

    /// Puts `tuning` in force, and a new epoch if results were learned under another fingerprint.
    /// Returns whether the epoch was raised.
    ///
    /// # Errors
    ///
    /// As [`Datapath::raise_epoch`].
    pub fn tune(&mut self, tuning: &Tuning) -> Result<bool, DatapathError> {
        let old = self.settings()?;
        let new = Settings {
            epoch: old.epoch,
            lease: clock::to_ticks(tuning.lease),
            port_min: tuning.ports.0,
            port_max: tuning.ports.1,
            fingerprint: tuning.fingerprint,
        };
        if new.fingerprint != old.fingerprint {
            self.store(Settings {
                epoch: old.epoch.wrapping_add(1),
                ..new
            })?;
            wait_for_running_programs()?;
            return Ok(true);
        }
        if new != old {
            self.store(new)?;
        }
        Ok(false)
    }

    /// As [`Datapath::tune`], ahead of the programs' attachment: a new epoch under another
    /// fingerprint, which is not noted yet. Until this load's programs are attached, those of an
    /// earlier one may still learn; a start that ends in between leaves it to the next to see that
    /// the fingerprint is another, and to raise the epoch again. Returns whether it was raised.
    ///
    /// # Errors
    ///
    /// As [`Datapath::raise_epoch`].
    pub fn announce(&mut self, tuning: &Tuning) -> Result<bool, DatapathError> {
        let old = self.settings()?;
        self.tune(&Tuning {
            fingerprint: old.fingerprint,
            ..*tuning
        })?;
        let differs = tuning.fingerprint != old.fingerprint;
        if differs {
            self.raise_epoch()?;
        }
        Ok(differs)
    }

    /// Makes everything learned so far dead. To be called after the change that it follows from;
    /// when it returns, no packet is judged by the old state.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] or [`DatapathError::Grace`].
    pub fn raise_epoch(&mut self) -> Result<u32, DatapathError> {
        let old = self.settings()?;
        let epoch = old.epoch.wrapping_add(1);
        self.store(Settings { epoch, ..old })?;
        wait_for_running_programs()?;
        Ok(epoch)
    }

    fn store(&mut self, settings: Settings) -> Result<(), DatapathError> {
        self.settings
            .set(0, settings, 0)
            .map_err(map_error("write", "SETTINGS"))
    }
}

/// Waits until every program that may have read the old epoch has ended.
///
/// tc programs run in RCU read-side sections (net/core/dev.c, `sch_handle_ingress` under
/// `netif_receive_skb`'s `rcu_read_lock`), and `MEMBARRIER_CMD_GLOBAL` waits for all of those
/// (kernel/sched/membarrier.c calls `synchronize_rcu`).
fn wait_for_running_programs() -> Result<(), DatapathError> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: the call takes three integers and touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(DatapathError::Grace(io::Error::last_os_error())),
    }
}
