//! When an init program may learn, and how a flow's word is written.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use oncache_abi::{
    admission::{ONE_OF, Window, with_one_less},
    entry::FlowEntry,
    flow::FlowKey,
    mark::Lesson,
    reason::Reason,
    settings::Settings,
    turnover::Turnover,
};

use crate::{
    counters::count_turnover,
    jiffy::now,
    maps::{COUNTERS, FILTER, constant, settings},
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

/// The flow's entry as it is now. Its verdict is read first: what is written to an entry in its place
/// is written in the other order.
#[inline(always)]
pub fn entry(key: &FlowKey) -> Option<FlowEntry> {
    let place = FILTER.get_ptr(key)?;
    // SAFETY: four aligned words of the map, each read once and whole; each tells whose it is.
    unsafe {
        Some(FlowEntry {
            verdict: core::ptr::read_volatile(&raw const (*place).verdict),
            host: core::ptr::read_volatile(&raw const (*place).host),
            device: core::ptr::read_volatile(&raw const (*place).device),
            mac: core::ptr::read_volatile(&raw const (*place).mac),
        })
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
    let old = entry(key);
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
    FILTER
        .insert(key, new, 0)
        .map_err(|_| Reason::HelperFailed)?;
    if is_new {
        count_turnover(Turnover::Entered);
    }
    Ok(())
}

/// Word by word, see `egress_init.rs`.
#[inline(always)]
const fn is_same(old: &FlowEntry, new: &FlowEntry) -> bool {
    (old.verdict.0 ^ new.verdict.0)
        | (old.host.0 ^ new.host.0)
        | (old.device.0 ^ new.device.0)
        | (old.mac.0 ^ new.mac.0)
        == 0
}

/// Whether a flow that is not in the cache may be entered; see `admission.rs` of the ABI. One that
/// has a place, left by an earlier connection of the same addresses and ports, may in any case.
#[inline(always)]
fn is_admitted(now: u64, lease: u64, has_place: bool) -> bool {
    let (Some(begun), Some(entered)) = (
        COUNTERS.get_ptr_mut(Turnover::WindowBegun.index()),
        COUNTERS.get_ptr_mut(Turnover::WindowEntered.index()),
    ) else {
        return true;
    };
    // SAFETY: the elements are this CPU's own, see `counters.rs`; (of `constant!`) see
    // `maps::volatile`.
    unsafe {
        let window = Window {
            begun: *begun,
            entered: *entered,
        };
        let window = window.at(now, lease);
        if !has_place && window.is_crowded(constant!(flows)) && bpf_get_prandom_u32() % ONE_OF != 0
        {
            return false;
        }
        *begun = window.begun;
        *entered = window.with_another().entered;
    }
    true
}

/// Closes the flow: its connection begins or ends, and conntrack has to see it.
///
/// Its word is written over, not taken out: taking out and entering again are locks on a bucket and on
/// the LRU lists, at each connection.
#[inline(always)]
pub fn close_flow(key: &FlowKey) {
    let Some(place) = FILTER.get_ptr_mut(key) else {
        return;
    };
    // SAFETY: the verdict is one aligned word, whole whenever it is read or written. Whatever was learned since it was
    // read is closed with it. Given to another key meanwhile, the place has a word that allows nothing,
    // and its flow takes the slow path once more.
    unsafe {
        let verdict = &raw mut (*place).verdict;
        let Some(closed) = core::ptr::read_volatile(verdict).close(key) else {
            return;
        };
        core::ptr::write_volatile(verdict, closed);
    }
    count_turnover(Turnover::Removed);
    if let Some(entered) = COUNTERS.get_ptr_mut(Turnover::WindowEntered.index()) {
        // SAFETY: this CPU's own, see `counters.rs`.
        unsafe { *entered = with_one_less(*entered) };
    }
}
