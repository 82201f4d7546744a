//! Policy under load: what a rule denies has stopped when the call returns, and nothing else has.

mod swarm;
mod tap;

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::ONCACHE;
use oncache_testbed::{Container, Host, Lab, eventually};
use serde_json::{Value, json};
use swarm::Swarm;
use tap::{Tap, crossed_after};

/// Flows of each protocol between each of two pairs: 64 in all, 32 of them to be denied.
const FLOWS: u16 = 16;
const ROUNDS: usize = 200;
/// How long it is watched what the denied flows send after the call has returned.
const WATCHED: Duration = Duration::from_millis(40);

/// Flows between two addresses that a host carries by the fast path in both directions.
fn fast_flows(host: &Host, pair: (&Container, &Container)) -> usize {
    let caches = host.ask("GET", "/v1/cache", "").json();
    let ends = [pair.0.ip.to_string(), pair.1.ip.to_string()];
    let between = |flow: &&Value| {
        let address = |key: &str| {
            let text = flow[key].as_str().expect("an address");
            text.split(':').next().expect("an address").to_owned()
        };
        let found = [address("local"), address("remote")];
        ends.iter().all(|end| found.contains(end))
    };
    let fast = |flow: &&Value| flow["state"] == "fast";
    let flows = caches["flows"].as_array().expect("a list");
    flows.iter().filter(between).filter(fast).count()
}

fn until_all_fast(hosts: [&Host; 2], pairs: &[(&Container, &Container)], flows: usize) -> Duration {
    eventually(
        "all flows are on the fast path",
        Duration::from_secs(20),
        || {
            pairs
                .iter()
                .all(|pair| hosts.iter().all(|host| fast_flows(host, *pair) >= flows))
        },
    )
}

fn now() -> Duration {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
}

fn median(times: &mut [Duration]) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

#[test]
fn what_is_denied_has_stopped_when_the_call_returns() {
    let _alone = crate::with_the_queues_alone();
    let lab = Lab::two_hosts(ONCACHE);
    lab.start();
    let (alpha, beta) = (lab.alpha(), lab.beta());
    let [denied_from, other_from] = ["one", "two"].map(|name| alpha.add_container(name));
    let [denied_to, other_to] = ["three", "four"].map(|name| beta.add_container(name));
    for container in [&denied_from, &other_from, &denied_to, &other_to] {
        // TCP tries again soon, so that a round is short.
        container.sh("ip route show | sed 's/ *$/ rto_min 5ms/' | while read route; do ip route replace $route; done");
    }
    for container in [&denied_from, &denied_to] {
        // One packet, one frame: each is known again at the other end.
        container.sh("ethtool -K eth0 tso off gso off gro off");
    }
    let pairs = [(&denied_from, &denied_to), (&other_from, &other_to)];
    let swarm = Swarm::start(&pairs, FLOWS, FLOWS);
    let flows = usize::from(2 * FLOWS);
    let hosts = [alpha, beta];
    println!(
        "all on the fast path after {:?}",
        until_all_fast(hosts, &pairs, flows)
    );

    let taps = [Tap::on(&denied_from), Tap::on(&denied_to)];
    taps.iter().for_each(Tap::until_stamping);
    let address = |container: &Container| container.ip.to_string();
    let rules = [
        // At the sender's host the container has its name.
        json!({ "rules": [{ "action": "deny", "from": "one", "to": address(&denied_to) }] }),
        json!({ "rules": [
            { "action": "allow", "from": address(&other_from) },
            { "action": "deny", "protocol": "tcp", "to": "three", "ports": ["21000-21100"] },
            { "action": "deny", "protocol": "udp", "to": "three", "ports": ["20000-20100"] },
        ]}),
    ];
    let (mut applying, mut returning) = (Vec::new(), Vec::new());
    let (mut sent, mut violations, mut passed_before) = ([0; 2], [0; 2], 0);
    let mut bad_rounds = Vec::new();
    for round in 0..ROUNDS {
        let which = round % 2;
        taps.iter().for_each(Tap::look);
        thread::sleep(Duration::from_millis(5));
        let began = Instant::now();
        let answer = hosts[which].ask("POST", "/v1/policy", &rules[which].to_string());
        let returned = now();
        applying.push(began.elapsed());
        assert_eq!(answer.status, 200, "{}", answer.body);
        thread::sleep(WATCHED);
        let [here, there] = [taps[0].seen(), taps[1].seen()];
        for (direction, (sender, receiver)) in
            [(&here, &there), (&there, &here)].into_iter().enumerate()
        {
            let (late, crossed) = crossed_after(returned, sender, receiver);
            sent[direction] += late;
            violations[direction] += crossed;
            if crossed > 0 {
                bad_rounds.push(round);
            }
        }
        passed_before += there.iter().filter(|seen| !seen.outgoing).count();
        eventually(
            "the others are fast again",
            oncache_testbed::PATIENCE,
            || fast_flows(hosts[which], pairs[1]) == flows,
        );
        let answer = hosts[which].ask("DELETE", "/v1/policy", "");
        assert_eq!(answer.status, 200, "{}", answer.body);
        returning.push(until_all_fast(hosts, &pairs, flows));
    }
    let progress = swarm.stop();
    let (denied, others) = progress.split_at(flows);
    let (apply_median, apply_max) = median(&mut applying);
    let (back_median, back_max) = median(&mut returning);
    println!("{ROUNDS} rounds: apply took {apply_median:?} at the median, {apply_max:?} at most");
    println!("back on the fast path after {back_median:?} at the median, {back_max:?} at most");
    println!(
        "of the denied flows {passed_before} packets arrived while they were watched, before the rules were in \
         force; {} were sent by the clients and {} by the servers after the calls had returned, of \
         which {} and {} arrived",
        sent[0], sent[1], violations[0], violations[1]
    );
    let sum = |of: &dyn Fn(&swarm::Progress) -> u64| others.iter().map(of).sum::<u64>();
    println!(
        "the other {flows} flows: {} sent (datagrams and bytes), {} received, {} datagrams twice, {} late",
        sum(&|it| it.sent),
        sum(&|it| it.received),
        sum(&|it| it.twice),
        sum(&|it| it.late)
    );
    let denied_tcp: u64 = denied[usize::from(FLOWS)..]
        .iter()
        .map(|it| it.received)
        .sum();
    println!("the denied TCP flows went on with {denied_tcp} bytes in all, each byte right");
    assert_eq!(violations, [0, 0], "in rounds {bad_rounds:?}");
    assert!(
        sent[0] > 2 * ROUNDS && sent[1] > ROUNDS / 2,
        "too little was sent to say anything: {sent:?}"
    );
    assert!(
        passed_before > 2 * ROUNDS,
        "too little arrived before: {passed_before}"
    );
    for (number, it) in others.iter().enumerate() {
        assert_eq!(
            (it.received, it.twice, &it.error),
            (it.sent, 0, &None),
            "flow {number}: {it:?}"
        );
    }
    for it in &denied[usize::from(FLOWS)..] {
        assert_eq!(
            (it.received, &it.error),
            (it.sent, &None),
            "a denied TCP flow goes on: {it:?}"
        );
    }
}
