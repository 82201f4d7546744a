//! No schedule learns, or uses, an entry from a packet that passed the old rules once the call that
//! changed them has returned. Every schedule is tried, with the very functions that the eBPF
//! programs decide by (`oncache_abi`); and the checker is shown to find the races that each of the
//! design's precautions is there for.

use oncache_epoch_model::{Call, Flaw, Outcome, Scenario, explore};

/// Tries every schedule, of which none may break a promise.
fn holds(name: &str, scenario: &Scenario) -> Outcome {
    let outcome = explore(scenario);
    println!("{name}: {outcome}");
    assert!(outcome.broken.is_none(), "{name}: {outcome}");
    assert!(outcome.hits > 0, "{name}: nothing was ever carried");
    outcome
}

/// Tries schedules until one breaks a promise, which must be this one.
fn is_found(flaw: Flaw, scenario: Scenario, promise: &str) {
    let name = format!("{flaw:?}");
    let outcome = explore(&Scenario { flaw, ..scenario });
    println!("{name}: {outcome}");
    let (broken, _) = outcome
        .broken
        .unwrap_or_else(|| panic!("{name}: not found in {} states", outcome.states));
    assert!(broken.contains(promise), "{name}: {broken}");
}

/// Allowed, denied, and allowed again by other headers: a policy and a topology at once.
fn two_changes() -> Scenario {
    Scenario {
        calls: vec![Call::Change, Call::Change],
        packets: [2, 2],
        ..Scenario::default()
    }
}

#[test]
fn no_schedule_learns_by_rules_that_are_no_more() {
    let outcome = holds("two changes, four packets", &two_changes());
    assert!(outcome.hits_after_change > 0, "never fast again");
    // More packets than a flow needs to become fast, so that some come too late.
    let scenario = Scenario {
        calls: vec![Call::Change],
        packets: [3, 2],
        ..two_changes()
    };
    holds("one change, five packets", &scenario);
}

#[test]
fn no_schedule_learns_from_a_syn_ack_by_rules_that_are_no_more() {
    for (name, accepting, packets) in [
        ("opened from outside", [1, 0], [1, 2]),
        ("opened from here", [0, 1], [2, 1]),
        ("opened from both sides at once", [1, 1], [1, 1]),
    ] {
        let scenario = Scenario {
            accepting,
            packets,
            ..two_changes()
        };
        let outcome = holds(name, &scenario);
        assert!(outcome.hits_after_change > 0, "{name}: never fast again");
    }
}

#[test]
fn no_schedule_learns_by_a_mark_whose_epoch_comes_round() {
    holds("two epochs, one bit of them in a mark", &wrapping());
}

/// One bit of the epoch in a mark: every second epoch looks the same. A packet waits for one tick
/// at most, and the bit rests for two.
fn wrapping() -> Scenario {
    Scenario {
        calls: vec![Call::Change, Call::Notified],
        packets: [2, 1],
        epoch_bits: 1,
        time: 4,
        patience: 1,
        rest: 2,
        lease: 8,
        ..Scenario::default()
    }
}

/// Sixteen bits of the epoch in a word: it comes round after 65,536 of them, and between them the
/// caches are swept.
fn circling() -> Scenario {
    Scenario {
        calls: vec![Call::Change, Call::Circle, Call::Change],
        ..two_changes()
    }
}

#[test]
fn no_schedule_uses_a_word_whose_epoch_comes_round() {
    holds("65,536 epochs between two changes", &circling());
}

/// Somebody changes the rules, and the daemon is dead: nobody raises the epoch.
fn dead() -> Scenario {
    Scenario {
        calls: vec![Call::Unnoticed],
        packets: [2, 2],
        time: 6,
        lease: 2,
        patience: 1,
        ..Scenario::default()
    }
}

#[test]
fn without_a_daemon_a_change_is_noticed_within_a_lease() {
    holds("a change with the daemon dead", &dead());
}

#[test]
fn the_checker_finds_an_epoch_that_is_raised_before_the_change() {
    is_found(Flaw::RaiseBeforeChange, two_changes(), "learned");
}

#[test]
fn the_checker_finds_marks_that_are_not_compared() {
    is_found(Flaw::NoComparison, two_changes(), "learned");
}

#[test]
fn the_checker_finds_an_epoch_that_is_read_again_for_what_is_entered() {
    is_found(Flaw::EpochReadAgain, two_changes(), "carried");
}

#[test]
fn the_checker_finds_a_call_that_does_not_wait_for_running_programs() {
    is_found(Flaw::NoGracePeriod, two_changes(), "carried");
}

#[test]
fn the_checker_finds_a_mark_that_is_set_for_what_is_not_established() {
    is_found(Flaw::EstablishedUnseen, two_changes(), "learned");
}

#[test]
fn the_checker_finds_bits_that_do_not_rest() {
    is_found(Flaw::NoRest, wrapping(), "learned");
}

#[test]
fn the_checker_finds_a_rest_that_begins_with_the_epoch_and_not_before() {
    is_found(Flaw::RestWithEpoch, wrapping(), "learned");
}

#[test]
fn the_checker_finds_a_packet_that_waits_longer_than_the_bits_rest() {
    let scenario = Scenario {
        patience: 4,
        ..wrapping()
    };
    is_found(Flaw::None, scenario, "learned");
}

#[test]
fn the_checker_finds_words_that_nobody_sweeps() {
    is_found(Flaw::NoSweep, circling(), "carried");
}

#[test]
fn the_checker_finds_a_lease_that_is_not_looked_at() {
    is_found(Flaw::NoLease, dead(), "after the lease");
}
