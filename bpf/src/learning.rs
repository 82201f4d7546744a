//! What is known of a flow, when an init program may learn more, and how it is written.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use oncache_abi::{
    admission::{Window, draws_a_place, with_one_less},
    container::MacWord,
    entry::{FlowEntry, FlowWord, LocalEnd},
    flow::{FlowKey, Verdict, VerdictWord},
    mark::Lesson,
    reason::Reason,
    settings::Settings,
    turnover::Turnover,
};

use crate::{
    counters::count_turnover,
    jiffy::now,
    maps::{COUNTERS, FLOWS, constant, settings},
    packet::{Skb, marks},
};

/// The settings to learn under, if the packet's mark allows it: it missed in the program that
/// `miss` names, in the current epoch, and the slow path found its flow established.
///
/// Takes oncache's bits off the mark. `Err(None)` where the packet was never meant to be learned
/// from: nothing to count.
#[inline(always)]
pub fn may_learn(skb: &Skb, miss: u32) -> Result<Settings, Option<Reason>> {
    let mark = skb.mark();
    if !marks().has_missed(mark, miss) {
        return Err(None);
    }
    skb.set_mark(marks().clear(mark));
    let settings = settings().ok_or(Reason::HelperFailed)?;
    match marks().lesson(mark, miss, &settings, now()) {
        Lesson::Learn => Ok(settings),
        Lesson::NotOurs => Err(None),
        Lesson::NotEstablished => Err(Some(Reason::NotEstablished)),
        Lesson::Stale => Err(Some(Reason::StaleMark)),
    }
}

/// A flow's place in `FLOWS`. What is there may change, and be given to another flow, at any moment: each
/// word is read by itself, once and whole, and tells whose it is.
#[derive(Clone, Copy)]
pub struct Place(*mut FlowEntry);

/// One word of the entry, as it is now.
macro_rules! word {
    ($name:ident: $type:ty) => {
        #[inline(always)]
        pub fn $name(self) -> $type {
            // SAFETY: an aligned word of an element of the map, which stays in memory until the program ends.
            unsafe { core::ptr::read_volatile(&raw const (*self.0).$name) }
        }
    };
}

impl Place {
    word!(verdict: VerdictWord);
    word!(peer: FlowWord);
    word!(device: FlowWord);
    word!(mac: MacWord);
    word!(port: FlowWord);

    /// The place of the flow that has one.
    #[inline(always)]
    pub fn of(key: &FlowKey) -> Option<Self> {
        FLOWS.get_ptr_mut(key).map(Self)
    }

    /// The way to the local container, see [`LocalEnd::told`].
    #[inline(always)]
    pub fn local(self, key: &FlowKey, epoch: u32) -> Option<LocalEnd> {
        LocalEnd::told(self.device(), self.mac(), key, epoch)
    }

    /// All that is there.
    #[inline(always)]
    fn entry(self) -> FlowEntry {
        FlowEntry {
            verdict: self.verdict(),
            peer: self.peer(),
            device: self.device(),
            mac: self.mac(),
            port: self.port(),
        }
    }
}

/// What the word says of the flow, as a reason.
#[inline(always)]
pub fn judge(
    word: VerdictWord,
    key: &FlowKey,
    has_payload: bool,
    now: u64,
    epoch: u32,
) -> Result<(), Reason> {
    if word.is_fast(key, now, epoch) {
        return Ok(());
    }
    match word.judge(key, now, epoch) {
        Verdict::Fast => Ok(()),
        Verdict::Unknown => Err(Reason::NoFlow),
        Verdict::StaleEpoch => Err(Reason::StaleEpoch),
        Verdict::LeaseExpired => Err(Reason::LeaseExpired),
        Verdict::OneWay => Err(Reason::OneWay),
        // Half closed, a connection may go on for long: what it then carries is learned from.
        Verdict::Closed if has_payload => Err(Reason::NoFlow),
        Verdict::Closed => Err(Reason::Closing),
    }
}

/// Enters what the slow path has shown of the flow: `learned` of what is known of it, at a tick and
/// for a lease.
///
/// Two CPUs may do this at once for the two directions; one of them may then be lost, and one more
/// packet takes the slow path.
#[inline(always)]
pub fn learn_flow(
    key: &FlowKey,
    settings: &Settings,
    learned: impl FnOnce(Option<FlowEntry>, u64, u64) -> FlowEntry,
) -> Result<(), Reason> {
    let old = Place::of(key).map(Place::entry);
    let lease = u64::from(settings.lease);
    let now = now();
    let is_new = old.is_none_or(|old| old.verdict.is_closed());
    if is_new && !is_admitted(now, lease, old.is_some()) {
        return Err(Reason::Crowded);
    }
    let new = learned(old, now, lease);
    if old.is_some_and(|old| is_same(&old, &new)) {
        return Ok(());
    }
    FLOWS
        .insert(key, new, 0)
        .map_err(|_| Reason::HelperFailed)?;
    if is_new {
        count_turnover(Turnover::Entered);
    }
    Ok(())
}

/// Word by word, see `programs/egress_init.rs`.
#[inline(always)]
const fn is_same(old: &FlowEntry, new: &FlowEntry) -> bool {
    (old.verdict.0 ^ new.verdict.0)
        | (old.peer.0 ^ new.peer.0)
        | (old.device.0 ^ new.device.0)
        | (old.mac.0 ^ new.mac.0)
        | (old.port.0 ^ new.port.0)
        == 0
}

/// Says of a packet that its flow has no place in `FLOWS`: whether it may get one, [`is_turned_away`]
/// tells.
pub const NO_PLACE: Reason = Reason::Crowded;

/// Whether nothing is to be learned from a packet whose flow has no place in `FLOWS`, because so many
/// others want one; see `admission.rs` of the ABI. Asked where the packet misses, so that what will not
/// be learned from costs little more than the look-up that did not find it.
#[inline(always)]
pub fn is_turned_away(lease: u32) -> bool {
    let (Some(begun), Some(entered), Some(drawn)) = (
        COUNTERS.get_ptr(Turnover::WindowBegun.index()),
        COUNTERS.get_ptr(Turnover::WindowEntered.index()),
        COUNTERS.get_ptr_mut(Turnover::WindowDrawn.index()),
    ) else {
        return false;
    };
    // SAFETY: the elements are this CPU's own, see `counters.rs`; (of `constant!`) see
    // `maps::volatile`; the helper takes no argument and has no precondition.
    unsafe {
        let window = Window {
            begun: *begun,
            entered: *entered,
        };
        if !window
            .at(now(), u64::from(lease))
            .is_crowded(constant!(flows))
        {
            return false;
        }
        if !draws_a_place(bpf_get_prandom_u32()) {
            return true;
        }
        *drawn = 1;
    }
    false
}

/// Whether a flow that is not in `FLOWS` may be entered. One that has a place, left by an earlier
/// connection of the same addresses and ports, may in any case.
///
/// While this CPU is crowded, its packets have drawn their place where they missed. One that missed on
/// another CPU, which may not be, draws here.
#[inline(always)]
fn is_admitted(now: u64, lease: u64, has_place: bool) -> bool {
    let (Some(begun), Some(entered)) = (
        COUNTERS.get_ptr_mut(Turnover::WindowBegun.index()),
        COUNTERS.get_ptr_mut(Turnover::WindowEntered.index()),
    ) else {
        return true;
    };
    // SAFETY: the elements are this CPU's own, see `counters.rs`; (of `constant!`) see
    // `maps::volatile`; the helper takes no argument and has no precondition.
    unsafe {
        let window = Window {
            begun: *begun,
            entered: *entered,
        };
        let window = window.at(now, lease);
        if !has_place
            && window.is_crowded(constant!(flows))
            && !takes_the_drawn()
            && !draws_a_place(bpf_get_prandom_u32())
        {
            return false;
        }
        *begun = window.begun;
        *entered = window.with_another().entered;
    }
    true
}

/// Takes the place that was drawn on this CPU, if one was.
#[inline(always)]
fn takes_the_drawn() -> bool {
    let Some(drawn) = COUNTERS.get_ptr_mut(Turnover::WindowDrawn.index()) else {
        return false;
    };
    // SAFETY: this CPU's own, see `counters.rs`.
    unsafe { core::mem::take(&mut *drawn) != 0 }
}

/// Closes the flow: its connection begins or ends, and conntrack has to see it. Returns whether it has a
/// place in `FLOWS`.
///
/// Its word is written over, not taken out: taking out and entering again are locks on a bucket and on
/// the LRU lists, at each connection.
#[inline(always)]
pub fn close_flow(key: &FlowKey) -> bool {
    let Some(place) = Place::of(key) else {
        return false;
    };
    let Some(closed) = place.verdict().close(key) else {
        return true;
    };
    // SAFETY: the verdict is one aligned word, whole whenever it is read or written. Whatever was learned since it was
    // read is closed with it. Given to another key meanwhile, the place has a word that allows nothing,
    // and its flow takes the slow path once more.
    unsafe { core::ptr::write_volatile(&raw mut (*place.0).verdict, closed) };
    count_turnover(Turnover::Removed);
    if let Some(entered) = COUNTERS.get_ptr_mut(Turnover::WindowEntered.index()) {
        // SAFETY: this CPU's own, see `counters.rs`.
        unsafe { *entered = with_one_less(*entered) };
    }
    true
}
