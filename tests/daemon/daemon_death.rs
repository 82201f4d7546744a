//! The daemon is not in the data path: it may die, and come back.

use std::time::Duration;

use oncache_testbed::{
    Capture, Host, Lab, TcpFlags,
    traffic::{Direction, Rounds, Transfer},
};

const MEGABYTE: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_transfer_survives_the_death_of_both_daemons_on_the_fast_path() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    let before: Vec<_> = lab.all().iter().map(Host::counters).collect();
    let running = Transfer::new(&client, &server, 9001)
        .direction(Direction::Both)
        .pace(40 * MEGABYTE)
        .start();
    assert!(
        running.wait_progress(20 * MEGABYTE, PATIENCE),
        "the transfer does not begin"
    );

    lab.all().iter().for_each(Host::kill9);

    let after_death = running.progress();
    let slow = Capture::on(lab.beta(), "oncache-vx0")
        .filter(|frame| {
            frame
                .tcp()
                .is_some_and(|tcp| tcp.payload_length() > 0 && !tcp.flags().any(TcpFlags::FIN))
        })
        .start();
    assert!(
        running.wait_progress(200 * MEGABYTE, 3 * PATIENCE),
        "it does not go on"
    );
    let report = running.stop();
    println!("daemons killed at {after_death} bytes; {report}");
    assert!(report.intact(), "{report}");
    let recording = slow.stop();
    println!(
        "data segments on beta's VXLAN device: {}",
        recording.frames.len()
    );
    assert_eq!(recording.frames.len(), 0, "it left the fast path");

    // A new daemon finds counters and caches as they were.
    lab.start();
    for (host, before) in lab.all().iter().zip(&before) {
        let counted = host.counters().since(before);
        println!("{}: {counted}", host.name);
        assert!(
            counted.get("egress", "hit") > 2000,
            "{}: {counted}",
            host.name
        );
        assert!(
            counted.get("ingress", "hit") > 2000,
            "{}: {counted}",
            host.name
        );
    }
    let again = Rounds::new(100).tcp(&client, &server, 9002);
    assert_eq!(again.completed, 100, "{again}");
}

#[test]
fn a_flow_renews_its_lease_without_a_daemon() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    for host in lab.all() {
        host.write_config(&host.default_config().lease("1s").to_string());
    }
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    lab.all().iter().for_each(Host::kill9);

    let mut rounds = Rounds::lasting(Duration::from_secs(5));
    rounds.count = u64::MAX;
    let report = rounds.udp(&client, &server, 9003);

    lab.start();
    let counters = lab.alpha().counters();
    println!("{report}; alpha: {counters}");
    assert_eq!((report.lost, report.wrong), (0, 0), "{report}");
    // Whichever direction meets the end of the lease first goes slow, and often both.
    let renewals =
        counters.get("egress", "lease-expired") + counters.get("ingress", "lease-expired");
    assert!(
        (3..=40).contains(&renewals),
        "renewals in five leases: {renewals}"
    );
    let hits = counters.get("egress", "hit");
    assert!(
        hits + 100 > report.completed,
        "{hits} hits in {} rounds",
        report.completed
    );
}

#[test]
fn restarts_lose_no_packet_and_the_flow_is_learned_again_at_once() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    // The containers' neighbours are found: that may take a moment after they were added.
    let first = Rounds::new(10).udp(&client, &server, 9005);
    println!("{first}");
    let report = std::thread::scope(|scope| {
        let rounds = scope.spawn(|| {
            let mut rounds = Rounds::lasting(Duration::from_secs(8));
            rounds.count = u64::MAX;
            rounds.udp(&client, &server, 9004)
        });
        std::thread::sleep(Duration::from_secs(1));
        let epoch = |host: &Host| {
            let status = host.oncache_json(&["status", "--json"]);
            status["cache"]["epoch"].as_u64().expect("an epoch")
        };
        for round in 0..4 {
            for host in lab.all() {
                let before = (epoch(host), host.counters());
                if round % 2 == 0 {
                    host.restart();
                } else {
                    host.kill9();
                    host.start();
                }
                let after = (epoch(host), host.counters());
                println!("{}: epoch {} then {}", host.name, before.0, after.0);
                assert_eq!(
                    before.0 + 1,
                    after.0,
                    "{}: a start is one new epoch",
                    host.name
                );
                let hits = |counters: &oncache_testbed::Counters| counters.get("egress", "hit");
                assert!(
                    hits(&after.1) >= hits(&before.1),
                    "{}: counters are gone",
                    host.name
                );
            }
        }
        rounds.join().expect("the rounds end")
    });
    println!("{report}");
    let counters = lab.alpha().counters();
    println!("alpha: {counters}");
    assert_eq!((report.lost, report.wrong), (0, 0), "{report}");
    assert!(report.completed > 500, "{report}");
    let missed = report
        .completed
        .saturating_sub(counters.get("egress", "hit"));
    assert!(
        missed < 50,
        "{missed} of {} requests were slow",
        report.completed
    );
}
