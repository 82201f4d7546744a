//! Traffic arrives whole, and the reports tell when it does not.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::by_hand::two_containers;
use oncache_testbed::{
    Host,
    traffic::{Connections, Datagrams, Direction, Ping, Rounds, Transfer, ping, transfer},
};

/// Drops what matches in the host's forward chain.
fn drop_forwarded(host: &Host, matching: &str) {
    host.sh(&format!(
        "nft add table ip t
         nft add chain ip t c '{{ type filter hook forward priority 0; }}'
         nft add rule ip t c {matching} drop"
    ));
}

#[test]
fn a_transfer_arrives_with_the_same_hash_both_ways() {
    let (_lab, client, server) = two_containers();
    let bytes = (256 << 20) + 13;
    let report = transfer(&client, &server, 5000, bytes, Direction::Both);
    println!("{report}");
    assert!(report.intact(), "{report}");
    let (forward, backward) = (
        report.forward.expect("asked"),
        report.backward.expect("asked"),
    );
    assert_eq!((forward.received, backward.received), (bytes, bytes));
    assert_eq!(forward.sent_sha256, forward.received_sha256);
    assert_eq!(forward.sent_sha256.len(), 64);
    assert_ne!(forward.sent_sha256, backward.sent_sha256);
}

#[test]
fn a_transfer_can_be_watched_and_stopped() {
    let (_lab, client, server) = two_containers();
    let begun = Instant::now();
    let running = Transfer::new(&client, &server, 0).pace(50 << 20).start();
    assert!(
        running.wait_progress(1 << 20, Duration::from_secs(5)),
        "{}",
        running.progress()
    );
    let before = running.progress();
    assert!(running.wait_progress(1 << 20, Duration::from_secs(5)));
    assert!(running.progress() > before);
    let report = running.stop();
    assert!(report.intact() && report.received() >= 2 << 20, "{report}");
    let due = begun.elapsed().as_secs_f64() * f64::from(50 << 20);
    let ahead = f64::from(8 << 20);
    assert!(
        report.received() as f64 <= due + ahead,
        "the pace is kept: {report}"
    );
    drop(Transfer::new(&client, &server, 0).start()); // and broken off
}

#[test]
fn a_transfer_through_a_cut_says_so() {
    let (lab, client, server) = two_containers();
    let running = Transfer::new(&client, &server, 5000)
        .bytes(1 << 40)
        .patience(Duration::from_secs(1))
        .start();
    assert!(running.wait_progress(1 << 20, Duration::from_secs(5)));
    drop_forwarded(lab.alpha(), "tcp dport 5000");
    let report = running.wait();
    assert!(!report.intact(), "{report}");
    let lane = report.forward.expect("it was connected");
    assert!(
        lane.error
            .as_ref()
            .is_some_and(|error| error.contains("stalled")),
        "{lane:?}"
    );
    assert!(lane.longest_pause >= Duration::from_millis(900), "{lane:?}");
    let report = Transfer::new(&client, &server, 5000).patience(Duration::from_millis(300));
    let report = report.start().wait();
    assert!(report.error.is_some() && !report.intact(), "{report}");
}

#[test]
fn connections_are_counted_and_failures_named() {
    let (lab, client, server) = two_containers();
    for concurrent in [1, 4] {
        let report = Connections::new(200, concurrent).run(&client, &server, 6000);
        assert_eq!((report.attempted, report.completed), (200, 200), "{report}");
        assert!(report.failures.is_empty(), "{report}");
        assert!(
            report.median <= report.p99 && report.p99 <= report.slowest,
            "{report}"
        );
        println!("{concurrent}: {report}");
    }
    drop_forwarded(lab.beta(), "tcp dport 6000");
    let plan = Connections {
        patience: Duration::from_millis(200),
        ..Connections::new(3, 1)
    };
    let report = plan.run(&client, &server, 6000);
    assert_eq!(
        (report.attempted, report.completed, report.failures.len()),
        (3, 0, 3),
        "{report}"
    );
}

#[test]
fn rounds_are_counted_over_tcp_and_udp() {
    let (lab, client, server) = two_containers();
    let tcp = Rounds {
        response: 3000,
        ..Rounds::new(500)
    }
    .tcp(&client, &server, 0);
    let udp = Rounds::new(500).udp(&client, &server, 0);
    for report in [&tcp, &udp] {
        println!("{report}");
        assert_eq!((report.asked, report.completed), (500, 500), "{report}");
        assert_eq!(
            (report.lost, report.wrong, &report.error),
            (0, 0, &None),
            "{report}"
        );
    }
    let lasting = Rounds::lasting(Duration::from_millis(200)).tcp(&client, &server, 0);
    assert!(lasting.completed > 0 && lasting.seconds >= 0.2, "{lasting}");
    drop_forwarded(lab.alpha(), "udp dport 7001 numgen inc mod 10 0");
    // As patient as ever: what is late is not to seem lost.
    let report = Rounds::new(30).udp(&client, &server, 7001);
    assert_eq!(
        (report.asked, report.completed, report.lost),
        (30, 27, 3),
        "{report}"
    );
}

#[test]
fn datagrams_of_all_sizes_arrive_whole() {
    let (_lab, client, server) = two_containers();
    for size in [8, 100, 1472, 1473, 9000, 65507] {
        let report = Datagrams {
            dont_fragment: Some(false),
            ..Datagrams::new(2000, size)
        };
        let report = report.run(&client, &server, 0);
        assert_eq!(
            (report.sent, report.whole),
            (2000, 2000),
            "{size}: {report}"
        );
        assert!(
            report.missing.is_empty() && report.errors.is_empty(),
            "{size}: {report}"
        );
        assert_eq!(
            (report.damaged, report.duplicated),
            (0, 0),
            "{size}: {report}"
        );
    }
    for (size, segments) in [(1000, 2), (1400, 40), (100, 64)] {
        let report = Datagrams::segmented(1000, size, segments).run(&client, &server, 0);
        assert_eq!(
            (report.sent, report.whole),
            (1000, 1000),
            "{size}: {report}"
        );
    }
    let plan = Datagrams {
        dont_fragment: Some(true),
        ..Datagrams::new(3, 3000)
    };
    let report = plan.run(&client, &server, 0);
    assert_eq!(
        (report.sent, report.errors.len(), report.missing.len()),
        (0, 3, 3),
        "{report}"
    );
}

#[test]
fn lost_datagrams_are_named() {
    let (lab, client, server) = two_containers();
    drop_forwarded(lab.beta(), "udp dport 7002 numgen inc mod 100 7");
    let report = Datagrams::new(1000, 500).run(&client, &server, 7002);
    let expected: Vec<u64> = (0..10).map(|hundred| hundred * 100 + 7).collect();
    assert_eq!(report.missing, expected, "{report}");
    assert_eq!((report.sent, report.whole), (1000, 990), "{report}");
    drop_forwarded(lab.alpha(), "udp dport 7003");
    let report = Datagrams::new(20000, 500).run(&client, &server, 7003);
    assert_eq!(
        (report.sent, report.whole, report.missing.len()),
        (20000, 0, 20000),
        "{report}"
    );
}

#[test]
fn changed_datagrams_are_damaged_and_not_whole() {
    let (lab, client, server) = two_containers();
    lab.beta().sh("nft add table ip t
                   nft add chain ip t c '{ type filter hook forward priority 0; }'
                   nft add rule ip t c udp dport 7004 @th,160,8 set 0x55");
    let report = Datagrams::new(256, 100).run(&client, &server, 7004);
    assert!(
        report.damaged > 200 && report.whole + report.damaged == 256,
        "{report}"
    );
}

#[test]
fn pings_are_counted() {
    let (lab, client, server) = two_containers();
    assert!(ping(&client, server.ip, 3).lossless());
    let report = Ping {
        size: 2000,
        dont_fragment: true,
        ..Ping::new(2)
    }
    .run(&client, server.ip);
    assert_eq!((report.received, report.errors.len()), (0, 2), "{report}");
    let report = Ping {
        size: 65507,
        ..Ping::new(2)
    }
    .run(&client, server.ip);
    assert!(report.lossless(), "{report}");
    let report = Ping {
        ttl: 1,
        ..Ping::new(1)
    }
    .run(&client, server.ip);
    assert!(!report.lossless(), "{report}");
    drop_forwarded(lab.alpha(), "icmp type echo-request numgen inc mod 2 0");
    let report = ping(&client, server.ip, 10);
    assert_eq!((report.sent, report.received), (10, 5), "{report}");
    assert!(!report.lossless());
}

#[test]
fn two_kinds_of_traffic_run_side_by_side() {
    let (_lab, client, server) = two_containers();
    thread::scope(|scope| {
        let bulk = scope.spawn(|| transfer(&client, &server, 5000, 64 << 20, Direction::Forward));
        let rounds = Rounds::new(200).udp(&client, &server, 5001);
        assert_eq!(rounds.completed, 200, "{rounds}");
        assert!(bulk.join().expect("a thread").intact());
    });
}
