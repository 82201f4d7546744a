//! When an init program may learn, and how a flow's word is written.

use oncache_abi::{
    flow::{FilterWord, FlowKey},
    mark::Lesson,
    reason::Reason,
    settings::Settings,
};

use crate::{
    maps::{FILTER, now, settings},
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
    let word = FilterWord::learn(old, key, direction, now(), lease, settings.epoch);
    if old == Some(word) {
        return Ok(());
    }
    FILTER
        .insert(key, word, 0)
        .map_err(|_| Reason::HelperFailed)
}
