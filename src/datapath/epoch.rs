//! The epoch and the other settings that change while the programs run.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use aya::maps::{Array, MapData};
use oncache_abi::{
    mark::MarkField,
    settings::{HELD, MARK_REST, Settings},
};

use super::{Datapath, DatapathError, clock, map_error};

/// What the daemon sets besides the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// How long an entry serves.
    pub lease: Duration,
    /// It is cut to what flows' connections live by: what was learned for a longer one must die.
    pub is_cut: bool,
    /// Outer UDP source ports, lowest and highest.
    pub ports: (u16, u16),
    /// Fingerprint of all that cached results depend on and that no notification would tell of.
    pub fingerprint: u32,
}

/// Why what was learned under earlier settings does not hold under others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlived {
    /// It was learned under another fingerprint.
    Fingerprint,
    /// It was learned for a lease that is longer than connections live by now.
    Lease,
}

impl Tuning {
    /// Whether, and why, what was learned under `old` dies of this.
    #[must_use]
    pub fn outlives(&self, old: &Settings) -> Option<Outlived> {
        if self.fingerprint != old.fingerprint {
            Some(Outlived::Fingerprint)
        } else if self.is_cut && clock::to_ticks(self.lease) < old.lease {
            Some(Outlived::Lease)
        } else {
            None
        }
    }

    /// The same with the fingerprint of `old`.
    #[must_use]
    pub const fn unnoted(self, old: &Settings) -> Self {
        Self {
            fingerprint: old.fingerprint,
            ..self
        }
    }

    fn applied(&self, settings: Settings) -> Settings {
        Settings {
            lease: clock::to_ticks(self.lease),
            port_min: self.ports.0,
            port_max: self.ports.1,
            fingerprint: self.fingerprint,
            ..settings
        }
    }
}

/// The shortest time between two epochs. Words of the caches have sixteen bits of the epoch: at
/// this pace they come round after two minutes, and dead words are swept every minute
/// ([`Datapath::sweep`]).
const SPACING: Duration = Duration::from_millis(2);

/// Why nothing is to be learned for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hold {
    /// Something has come to a device, and what it is was not looked at yet.
    Devices,
    /// Tables of oncache's were hurt, and are not back yet.
    Tables,
}

/// The settings in force, and the right to change them. There is one of a load, and whoever has it
/// decides alone when everything learned dies.
pub struct Epoch(Arc<Mutex<Shared>>);

/// The settings in force, to be read.
pub(super) struct InForce(Arc<Mutex<Shared>>);

struct Shared {
    map: Array<MapData, Settings>,
    /// How many bits of the epoch a mark holds.
    mark_bits: u32,
    raised: Option<Instant>,
    /// `learn_from` of the settings while learning is not held.
    learn_from: u64,
    /// The present holds; each has another number.
    held: BTreeMap<Hold, u64>,
    holds: u64,
}

impl Shared {
    fn settings(&self) -> Result<Settings, DatapathError> {
        self.map.get(&0, 0).map_err(map_error("read", "SETTINGS"))
    }

    fn store(&mut self, settings: Settings) -> Result<(), DatapathError> {
        let settings = Settings {
            learn_from: if self.held.is_empty() {
                settings.learn_from
            } else {
                HELD
            },
            ..settings
        };
        self.map
            .set(0, settings, 0)
            .map_err(map_error("write", "SETTINGS"))
    }

    fn begin(&mut self, why: Hold) -> u64 {
        self.holds += 1;
        self.held.insert(why, self.holds);
        self.holds
    }

    /// Puts `other` in force with the next epoch.
    fn raise(&mut self, other: Settings) -> Result<u32, DatapathError> {
        if let Some(raised) = self.raised {
            thread::sleep(SPACING.saturating_sub(raised.elapsed()));
        }
        let other = Settings {
            learn_from: self.learn_from,
            ..other
        };
        let new = other.raised(clock::now(), self.mark_bits, MARK_REST);
        self.learn_from = new.learn_from;
        if new.learn_from > clock::now() {
            // Seen by every program that sees the epoch it is for.
            self.store(Settings {
                epoch: other.epoch,
                ..new
            })?;
            wait_for_running_programs()?;
        }
        self.store(new)?;
        self.raised = Some(Instant::now());
        Ok(new.epoch)
    }
}

impl Epoch {
    pub(super) fn new(map: Array<MapData, Settings>, mark_mask: u32) -> Self {
        let mut shared = Shared {
            map,
            mark_bits: MarkField::trusted(mark_mask).epoch_bits(),
            raised: None,
            learn_from: 0,
            held: BTreeMap::new(),
            holds: 0,
        };
        // What can't be read now fails at the first use.
        match shared.settings().map(|settings| settings.learn_from) {
            // A daemon that has died held it, and what it was before is not known.
            Ok(HELD) => {
                shared.learn_from = clock::now() + MARK_REST;
                shared.held.insert(Hold::Devices, 0);
            }
            Ok(learn_from) => shared.learn_from = learn_from,
            Err(_) => {}
        }
        Self(Arc::new(Mutex::new(shared)))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Shared) -> T) -> T {
        // A panic between two stores leaves settings that were in force at some moment.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn in_force(&self) -> InForce {
        InForce(self.0.clone())
    }

    /// The settings in force.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be read.
    pub fn settings(&self) -> Result<Settings, DatapathError> {
        self.with(|shared| shared.settings())
    }

    /// Makes everything learned so far dead for every packet that a program meets from now on, and
    /// puts `tuning`, if there is any, in force by the same write. With a hold nothing is learned in
    /// this epoch or a later one until [`Epoch::release`]. A packet that a program is judging already
    /// may still pass: who must know that it has, calls [`wait_for_running_programs`] afterwards.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be written, [`DatapathError::Grace`] in the rare case
    /// that a grace period is part of it.
    pub fn raise(&self, tuning: Option<&Tuning>, hold: Option<Hold>) -> Result<u32, DatapathError> {
        self.with(|shared| {
            if let Some(why) = hold {
                shared.begin(why);
            }
            let settings = shared.settings()?;
            shared.raise(tuning.map_or(settings, |tuning| tuning.applied(settings)))
        })
    }

    /// Puts `tuning` in force; what was learned goes on.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be written.
    pub fn tune(&self, tuning: &Tuning) -> Result<(), DatapathError> {
        self.with(|shared| {
            let old = shared.settings()?;
            let new = tuning.applied(old);
            if new == old {
                return Ok(());
            }
            shared.store(new)
        })
    }

    /// Lets nothing be learned until [`Epoch::release`]; what is there stays.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be written.
    pub fn hold(&self, why: Hold) -> Result<u64, DatapathError> {
        self.with(|shared| {
            let hold = shared.begin(why);
            let settings = shared.settings()?;
            shared.store(settings)?;
            Ok(hold)
        })
    }

    /// The hold that is on learning for this reason, if there is one.
    #[must_use]
    pub fn held(&self, why: Hold) -> Option<u64> {
        self.with(|shared| shared.held.get(&why).copied())
    }

    /// Ends a hold, unless there is another one for this reason by now.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be written.
    pub fn release(&self, why: Hold, hold: u64) -> Result<(), DatapathError> {
        self.with(|shared| {
            if shared.held.get(&why) != Some(&hold) {
                return Ok(());
            }
            shared.held.remove(&why);
            let settings = Settings {
                learn_from: shared.learn_from,
                ..shared.settings()?
            };
            shared.store(settings)
        })
    }

    /// Goes on behind `epoch`, that of other maps which these take the place of, if it is not the
    /// epoch here.
    ///
    /// # Errors
    ///
    /// As [`Epoch::raise`].
    pub fn count_on_from(&self, epoch: u32) -> Result<(), DatapathError> {
        self.with(|shared| {
            let here = shared.settings()?;
            if here.epoch != epoch {
                shared.raise(Settings { epoch, ..here })?;
            }
            Ok(())
        })
    }
}

impl Datapath {
    /// The settings in force.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be read.
    pub fn settings(&self) -> Result<Settings, DatapathError> {
        let InForce(shared) = &self.settings;
        shared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .settings()
    }
}

/// Waits until every program that may have read an epoch of before the call has ended.
///
/// tc programs run in RCU read-side sections (net/core/dev.c, `sch_handle_ingress` under
/// `netif_receive_skb`'s `rcu_read_lock`), and `MEMBARRIER_CMD_GLOBAL` waits for all of those
/// (kernel/sched/membarrier.c calls `synchronize_rcu`).
///
/// # Errors
///
/// [`DatapathError::Grace`] where the kernel does not offer it.
pub fn wait_for_running_programs() -> Result<(), DatapathError> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: the call takes three integers and touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(DatapathError::Grace(io::Error::last_os_error())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learned_outlives_all_but_another_fingerprint_and_a_cut_lease() {
        let seconds = |lease| Tuning {
            lease: Duration::from_secs(lease),
            is_cut: false,
            ports: (32_768, 60_999),
            fingerprint: 7,
        };
        let old = seconds(30).applied(Settings {
            epoch: 1,
            lease: 0,
            port_min: 0,
            port_max: 0,
            fingerprint: 0,
            learn_from: 0,
            half_began: 0,
        });
        for (tuning, expected) in [
            (seconds(30), None),
            // The configured one: what was learned for a longer one ends when that does.
            (seconds(5), None),
            (seconds(60), None),
            (
                Tuning {
                    is_cut: true,
                    ..seconds(5)
                },
                Some(Outlived::Lease),
            ),
            (
                Tuning {
                    is_cut: true,
                    ..seconds(60)
                },
                None,
            ),
            (
                Tuning {
                    is_cut: true,
                    fingerprint: 8,
                    ..seconds(5)
                },
                Some(Outlived::Fingerprint),
            ),
        ] {
            assert_eq!(tuning.outlives(&old), expected, "{tuning:?}");
            assert_ne!(
                tuning.unnoted(&old).outlives(&old),
                Some(Outlived::Fingerprint)
            );
        }
    }
}
