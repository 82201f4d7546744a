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

/// A handle to the settings in force. Its clones are one: whoever raises the epoch through one of
/// them has raised it for all.
#[derive(Clone)]
pub struct Epoch(Arc<Mutex<Shared>>);

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

    /// The settings in force.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be read.
    pub fn settings(&self) -> Result<Settings, DatapathError> {
        self.with(|shared| shared.settings())
    }

    /// Makes everything learned so far dead for every packet that a program meets from now on. A
    /// packet that a program is judging already may still pass: who must know that it has, calls
    /// [`wait_for_running_programs`] afterwards.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be written, [`DatapathError::Grace`] in the rare case
    /// that a grace period is part of it.
    pub fn raise(&self) -> Result<u32, DatapathError> {
        self.with(|shared| {
            let settings = shared.settings()?;
            shared.raise(settings)
        })
    }

    /// As [`Epoch::raise`], and nothing is learned in this epoch or a later one until [`Epoch::release`].
    ///
    /// # Errors
    ///
    /// As [`Epoch::raise`].
    pub fn raise_and_hold(&self, why: Hold) -> Result<u32, DatapathError> {
        self.with(|shared| {
            shared.begin(why);
            let settings = shared.settings()?;
            shared.raise(settings)
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

    /// Puts `tuning` in force, and a new epoch if results were learned under another fingerprint, or for a
    /// lease that is longer than connections live by now. Returns whether the epoch was raised.
    ///
    /// # Errors
    ///
    /// As [`Datapath::raise_epoch`].
    pub fn tune(&self, tuning: &Tuning) -> Result<bool, DatapathError> {
        self.with(|shared| {
            let old = shared.settings()?;
            let new = Settings {
                lease: clock::to_ticks(tuning.lease),
                port_min: tuning.ports.0,
                port_max: tuning.ports.1,
                fingerprint: tuning.fingerprint,
                ..old
            };
            if new.fingerprint != old.fingerprint || (tuning.is_cut && new.lease < old.lease) {
                shared.raise(new)?;
                wait_for_running_programs()?;
                return Ok(true);
            }
            if new != old {
                shared.store(new)?;
            }
            Ok(false)
        })
    }
}

impl Datapath {
    /// The handle to the settings, for who raises the epoch beside the owner of the data path.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch.clone()
    }

    /// The settings in force.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Map`] if the map can't be read.
    pub fn settings(&self) -> Result<Settings, DatapathError> {
        self.epoch.settings()
    }

    /// See [`Epoch::tune`].
    ///
    /// # Errors
    ///
    /// As [`Datapath::raise_epoch`].
    pub fn tune(&self, tuning: &Tuning) -> Result<bool, DatapathError> {
        self.epoch.tune(tuning)
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
    pub fn raise_epoch(&self) -> Result<u32, DatapathError> {
        let epoch = self.epoch.raise()?;
        wait_for_running_programs()?;
        Ok(epoch)
    }

    /// Goes on behind `epoch`, that of other maps which these take the place of, if it is not the
    /// epoch here.
    ///
    /// # Errors
    ///
    /// As [`Datapath::raise_epoch`].
    pub fn count_on_from(&self, epoch: u32) -> Result<(), DatapathError> {
        self.epoch.with(|shared| {
            let here = shared.settings()?;
            if here.epoch != epoch {
                shared.raise(Settings { epoch, ..here })?;
            }
            Ok(())
        })
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
