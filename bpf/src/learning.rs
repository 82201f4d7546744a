//! When an init program may learn, and how a flow's word is written.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use oncache_abi::{
    admission::{ONE_OF, Window},
    flow::{FilterWord, FlowKey},
    mark::Lesson,
    reason::Reason,
    settings::Settings,
    turnover::Turnover,
};

use crate::{
    counters::count_turnover,
    maps::{COUNTERS, FILTER, constant, now, settings},
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

/// Notes that the slow path passed a packet of the flow in `direction`.
///
/// Two CPUs may do this at once for the two directions; one of the bits may then be lost, and one
/// more packet takes the slow path.
#[inline(always)]
pub fn learn_flow(key: &FlowKey, direction: u64, settings: &Settings) -> Result<(), Reason> {
    // SAFETY: one aligned word, whole whenever it is read; its tag tells whose it is.
    let old = unsafe { FILTER.get(key) }.copied();
    let lease = u64::from(settings.lease);
    if old.is_none() && !is_admitted(now(), lease) {
        return Err(Reason::Crowded);
    }
    let word = FilterWord::learn(old, key, direction, now(), lease, settings.epoch);
    if old == Some(word) {
        return Ok(());
    }
    FILTER
        .insert(key, word, 0)
        .map_err(|_| Reason::HelperFailed)?;
    if old.is_none() {
        count_turnover(Turnover::Entered);
    }
    Ok(())
}

/// Whether a flow that is not in the cache may be entered; see `admission.rs` of the ABI.
#[inline(always)]
fn is_admitted(now: u64, lease: u64) -> bool {
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
        if window.is_crowded(constant!(flows)) && bpf_get_prandom_u32() % ONE_OF != 0 {
            return false;
        }
        *begun = window.begun;
        *entered = window.with_another().entered;
    }
    true
}

/// Takes the flow out: its connection begins or ends, and conntrack has to see it.
#[inline(always)]
pub fn forget_flow(key: &FlowKey) {
    if FILTER.remove(key).is_ok() {
        count_turnover(Turnover::Removed);
    }
}
