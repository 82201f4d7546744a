//! What the daemon mends beside something else is an epoch as well: what was learned meanwhile went by
//! what was broken.

use oncache_testbed::{CachedFlow, Lab, PATIENCE, eventually};

use crate::ONCACHE;

/// Enough for one of them to fall between two comparisons.
const ROUNDS: usize = 5;

#[test]
fn a_source_guard_that_an_added_container_finds_broken_is_a_new_epoch() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let alpha = flow.lab.alpha();
    for round in 0..ROUNDS {
        let before = alpha.invalidations("mended");
        // While one is added the watcher has no copy of the table to put back, and until the next
        // comparison it has none either.
        alpha.sh(&format!(
            "{ONCACHE} container add one{round} >/dev/null
             nft delete table bridge oncache
             {ONCACHE} container add two{round} >/dev/null"
        ));
        eventually("the mended guard is an epoch", PATIENCE, || {
            alpha.invalidations("mended") > before
        });
    }
}

#[test]
fn a_container_that_goes_down_hides_nothing_that_is_mended_with_it() {
    let flow = CachedFlow::warm(Lab::two_hosts(ONCACHE));
    let alpha = flow.lab.alpha();
    let quiet = alpha.add_container("quiet");
    let [a, b, c, d] = flow.client.ip.octets();
    let entry = format!("0a:63:{a:02x}:{b:02x}:{c:02x}:{d:02x} dev onc-client master");
    let is_fixed = || {
        alpha
            .sh("bridge fdb show dev onc-client")
            .contains(&entry[..17])
    };
    for state in ["down", "up", "down", "up"] {
        let before = alpha.invalidations("mended");
        // Nobody tells of the one; for the other a comparison is due.
        alpha.sh(&format!("bridge fdb del {entry}"));
        assert!(!is_fixed());
        quiet.run(&["ip", "link", "set", "eth0", state]);
        eventually("the entry is back", PATIENCE, is_fixed);
        eventually("the mended entry is an epoch", PATIENCE, || {
            alpha.invalidations("mended") > before
        });
    }
}
