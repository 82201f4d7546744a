//! Tables of oncache's that somebody deletes, flushes or changes are put back at once: rules stop what
//! they deny again, and meanwhile the fast path carries nothing of it.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::ONCACHE;
use oncache_testbed::{Container, Hits, Host, Lab, eventually, policy::rule, until_fast};

/// The port that a rule denies.
const PORT: u16 = 7001;
/// No promise, but what even a crowded machine keeps; the figures are printed.
const SURELY: Duration = Duration::from_secs(5);

/// For how long datagrams that a rule denies passed because of `damage`: from the first to the last.
fn passed(from: &Container, to: &Container, damage: impl FnOnce()) -> (usize, Duration) {
    let sender = from.enter(|| UdpSocket::bind("0.0.0.0:0").expect("bind"));
    let receiver = to.enter(|| UdpSocket::bind((to.ip, PORT)).expect("bind"));
    receiver
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("a time-out");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = sender.send_to(b"datagram", SocketAddr::from((to.ip, PORT)));
                thread::sleep(Duration::from_micros(200));
            }
        });
        let listening = scope.spawn(|| {
            let mut came: Vec<Instant> = Vec::new();
            while !over.load(Ordering::Relaxed) {
                if let Ok((_, asker)) = receiver.recv_from(&mut [0; 16]) {
                    came.push(Instant::now());
                    // Answered, so that there is something to learn.
                    let _ = receiver.send_to(b"answer", asker);
                }
            }
            came
        });
        thread::sleep(Duration::from_millis(50));
        damage();
        thread::sleep(Duration::from_millis(700));
        over.store(true, Ordering::Relaxed);
        let came = listening.join().expect("a listener");
        let first_and_last = came.first().zip(came.last());
        let time = first_and_last.map_or(Duration::ZERO, |(first, last)| *last - *first);
        (came.len(), time)
    })
}

/// One rule that denies the port, and others before it that match nothing.
fn rules(count: usize) -> String {
    let mut text: String = (1..count)
        .map(|number| {
            let port = format!("ports = [{}]", 10_000 + number);
            rule(
                "deny",
                &["from = \"10.42.1.0/24\"", "protocol = \"udp\"", &port],
            )
        })
        .collect();
    let port = format!("ports = [{PORT}]");
    text.push_str(&rule("deny", &["protocol = \"udp\"", &port]));
    text
}

/// Waits until the daemon has compared the tables and found nothing to do.
fn until_settled(alpha: &Host) {
    let quiet = |alpha: &Host| {
        let before = alpha.log().len();
        thread::sleep(Duration::from_millis(1200));
        alpha.log().len() == before
    };
    eventually("the daemon is content", Duration::from_secs(30), || {
        quiet(alpha)
    });
}

#[test]
fn what_is_denied_passes_for_as_long_as_it_takes_to_put_the_tables_back() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let (alpha, beta) = (lab.alpha(), lab.beta());
    let one = alpha.add_container("one");
    let near = alpha.add_container("near");
    let far = beta.add_container("far");
    until_fast([alpha, beta], &one, &far);
    for count in [1, 500] {
        alpha.apply_policy(&rules(count));
        until_settled(alpha);
        let whole = alpha.snapshot();
        for damage in [
            "nft flush ruleset",
            "nft delete table inet oncache-policy; nft delete table bridge oncache-policy",
            "nft flush table inet oncache-policy; nft flush table bridge oncache-policy",
            "nft delete table bridge oncache",
        ] {
            for (place, to) in [("between hosts", &far), ("on one host", &near)] {
                let hits = Hits::of(alpha);
                let (datagrams, time) = passed(&one, to, || {
                    alpha.sh(damage);
                });
                println!(
                    "{count} rules, {damage}, {place}: {datagrams} denied datagrams passed in {:.1} ms",
                    time.as_secs_f64() * 1000.0
                );
                assert!(time < SURELY, "{count} rules, {damage}, {place}: {time:?}");
                // The rule by which flows are learned goes with the ruleset.
                if damage.ends_with("ruleset") {
                    assert_eq!(Hits::of(alpha), hits, "the fast path carried some of it");
                }
                oncache_testbed::until_same(alpha, &whole, SURELY, damage);
                until_settled(alpha);
                // From what the copy had counted, which may be less than before the damage.
                let counted = alpha.rule_packets(count);
                let sender = one.enter(|| UdpSocket::bind("0.0.0.0:0").expect("bind"));
                let _ = sender.send_to(b"denied", (to.ip, PORT));
                eventually("counting goes on", SURELY, || {
                    alpha.rule_packets(count) > counted
                });
            }
        }
    }
}

#[test]
fn a_rule_or_a_source_that_is_taken_out_is_put_back() {
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let alpha = lab.alpha();
    let one = alpha.add_container("one");
    let near = alpha.add_container("near");
    alpha.apply_policy(&rules(2));
    until_settled(alpha);
    let whole = alpha.snapshot();
    let handle = |chain: &str| {
        let list = format!("nft -a list chain inet oncache-policy {chain}");
        format!("$({list} | sed -n 's/.*# handle \\([0-9]*\\)$/\\1/p' | tail -1)")
    };
    for damage in [
        format!(
            "nft delete rule inet oncache-policy backwards handle {}",
            handle("backwards")
        ),
        "nft insert rule inet oncache-policy judge accept".to_owned(),
        "nft add set inet oncache-policy strange '{ type ipv4_addr; }'".to_owned(),
        "nft flush chain bridge oncache-policy forwards".to_owned(),
        "nft flush set bridge oncache sources".to_owned(),
        "nft flush chain inet oncache established".to_owned(),
    ] {
        alpha.sh(&damage);
        let took = oncache_testbed::until_same(alpha, &whole, SURELY, &damage);
        println!("{damage}: as it was after {took:?}");
        oncache_testbed::traffic::Probe::Udp(PORT).expect(&one, &near, false, &damage);
        oncache_testbed::traffic::Probe::Udp(7002).expect(&one, &near, true, &damage);
        until_settled(alpha);
    }
}
