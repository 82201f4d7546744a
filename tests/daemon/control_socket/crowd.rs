//! A thousand callers at once, half of whom leave in the middle.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use oncache_testbed::{Host, Lab, PATIENCE, eventually, traffic, until_same};

use super::wire::{Holdings, answer, connect, request};
use crate::ONCACHE;

const CALLERS: usize = 1000;

/// What the daemon is told of its service manager's patience: what oncache's unit says.
const WATCHDOG: Duration = Duration::from_secs(30);

/// What a caller asks for.
fn asks_for(number: usize) -> Vec<u8> {
    let add = |name: String| {
        request(
            "POST",
            "/v1/containers",
            Some(&format!("{{\"name\": \"{name}\"}}")),
        )
    };
    match (number / 2) % 16 {
        0 if number.is_multiple_of(2) => add(format!("stays-{number}")),
        0 | 1 if !number.is_multiple_of(2) => add(format!("leaves-{number}")),
        2..=5 => request("GET", "/v1/stats", None),
        6..=9 => request("GET", "/v1/containers", None),
        10 => request("GET", "/v1/cache", None),
        11 => request("DELETE", "/v1/containers/nobody", None),
        _ => request("GET", "/v1/status", None),
    }
}

/// How a caller leaves.
fn leave(number: usize, mut stream: UnixStream) {
    match (number / 2) % 3 {
        // While the daemon is at it, or before.
        0 => {}
        1 => drop(stream.shutdown(Shutdown::Write)),
        // In the middle of the answer, if there is one.
        _ => {
            drop(stream.set_read_timeout(Some(Duration::from_micros(200))));
            drop(stream.read(&mut [0; 10]));
        }
    }
}

/// Opens all connections, then asks, then leaves with half of them; returns the others.
fn storm() -> Vec<(usize, UnixStream)> {
    let mut streams: Vec<(usize, UnixStream)> =
        (0..CALLERS).map(|number| (number, connect())).collect();
    for (number, stream) in &mut streams {
        let bytes = asks_for(*number);
        // A third of those who leave do not even finish their request.
        let length = match (*number % 2, (*number / 2) % 7) {
            (1, 0) => 0,
            (1, part @ 1..=2) => bytes.len() * part / 3,
            _ => bytes.len(),
        };
        stream
            .write_all(&bytes[..length])
            .expect("room in the socket");
    }
    let (leaving, staying): (Vec<_>, Vec<_>) =
        streams.into_iter().partition(|(number, _)| number % 2 == 1);
    for (number, stream) in leaving {
        leave(number, stream);
        thread::sleep(Duration::from_millis(1));
    }
    staying
}

/// The longest time without a sign of life to the service manager, until told to stop.
fn longest_silence(host: &Host, done: &AtomicBool) -> Duration {
    let mut longest = Duration::ZERO;
    let (mut last, mut seen) = (Instant::now(), 0);
    while !done.load(Ordering::Relaxed) {
        let count = host
            .notifications()
            .iter()
            .filter(|letter| letter.contains("WATCHDOG=1"))
            .count();
        if count != seen {
            (last, seen) = (Instant::now(), count);
        }
        longest = longest.max(last.elapsed());
        thread::sleep(Duration::from_millis(10));
    }
    longest
}

/// Everything that belongs to containers on the host, by three witnesses that have to agree.
fn assert_no_halves(host: &Host) -> BTreeSet<String> {
    let status = host.status();
    let listed = status["containers"].as_array().expect("a list");
    let set = |key: &str| -> BTreeSet<String> {
        let texts = listed.iter().filter_map(|row| row[key].as_str());
        texts.map(str::to_owned).collect()
    };
    let words = |script: &str| -> BTreeSet<String> {
        host.sh(script)
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    };
    let names = set("name");
    assert_eq!(
        names,
        words("ls /run/netns 2>/dev/null || true"),
        "namespaces"
    );
    let devices = "ip -o link show type veth | sed -n 's/^[0-9]*: \\(onc[-_][^@:]*\\).*/\\1/p'";
    assert_eq!(set("device"), words(devices), "devices");
    assert_eq!(
        set("ip").len(),
        names.len(),
        "each has an address of its own"
    );
    let pins: BTreeSet<String> = set("device")
        .iter()
        .flat_map(|device| [format!("{device}:egress"), format!("{device}:ingress_init")])
        .chain(["eth1:ingress", "eth1:egress_init"].map(str::to_owned))
        .collect();
    assert_eq!(pins, words("ls /sys/fs/bpf/oncache/links"), "pinned links");
    let state = host.sh("cat /var/lib/oncache/state.json");
    assert!(!state.contains("\"pending\": true"), "{state}");
    names
}

#[test]
fn a_thousand_callers_at_once() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    let microseconds = WATCHDOG.as_micros().to_string();
    host.try_start_with(|command| {
        command.env("WATCHDOG_USEC", &microseconds);
    })
    .expect("the daemon starts");
    let _ = host.status();
    let (before, held) = (host.snapshot(), Holdings::at_rest(host));
    let done = AtomicBool::new(false);
    let begun = Instant::now();
    let (answers, mended, silence) = thread::scope(|scope| {
        let silence = scope.spawn(|| longest_silence(host, &done));
        let staying = host.enter(storm);
        // Somebody breaks the overlay, while hundreds of requests wait.
        host.sh("ip route del 10.42.2.0/24");
        let broken = Instant::now();
        let mending = scope.spawn(move || {
            eventually("the route is back", PATIENCE, || {
                !host
                    .run(&["ip", "route", "show", "10.42.2.0/24"])
                    .is_empty()
            });
            broken.elapsed()
        });
        let mut answers = Vec::new();
        for (number, mut stream) in staying {
            let answer = answer(&mut stream);
            answers.push((
                number,
                answer.unwrap_or_else(|error| panic!("caller {number}: {error}")),
            ));
        }
        let mended = mending.join().expect("somebody who looks");
        done.store(true, Ordering::Relaxed);
        (
            answers,
            mended,
            silence.join().expect("somebody who listens"),
        )
    });
    let (elapsed, peak) = (begun.elapsed(), Holdings::of(host));
    for (number, answer) in &answers {
        let wanted = if (number / 2) % 16 == 11 { 404 } else { 200 };
        assert_eq!(
            answer.status,
            Some(wanted),
            "caller {number}: {}",
            answer.body
        );
        serde_json::from_str::<serde_json::Value>(&answer.body)
            .unwrap_or_else(|error| panic!("caller {number}: {error}: {}", answer.body));
    }
    println!(
        "{CALLERS} callers at once: {} stayed and were answered, all within {elapsed:?}; a deleted \
         route was back after {mended:?}; the longest silence towards the watchdog ({WATCHDOG:?}) \
         was {silence:?}",
        answers.len()
    );
    assert_eq!(answers.len(), CALLERS / 2);
    assert!(silence < WATCHDOG, "{silence:?}");

    // Those who left may have got their container or not, but never half of one.
    let names = assert_no_halves(host);
    let of = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
    println!(
        "containers: {} of callers who stayed, {} of callers who left",
        of("stays"),
        of("leaves")
    );
    let wanted = answers
        .iter()
        .filter(|(number, _)| (number / 2) % 16 == 0)
        .count();
    assert_eq!(of("stays"), wanted);
    for name in &names {
        let container = host.container(name);
        let report = traffic::ping(&container, "10.42.1.1".parse().expect("the gateway"), 1);
        assert!(report.lossless(), "{name}: {report}");
        host.remove_container(name);
    }
    until_same(host, &before, PATIENCE, "when all containers are deleted");
    eventually("its descriptors are free", PATIENCE, || {
        Holdings::of(host).descriptors <= held.descriptors
    });
    println!(
        "before: {held:?}\nduring: {peak:?}\nafter:  {:?}",
        Holdings::of(host)
    );
    assert!(
        peak.peak < held.peak + (64 << 10),
        "memory: {held:?} {peak:?}"
    );
}

#[test]
fn a_caller_that_leaves_while_its_container_is_added() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.start();
    let before = host.snapshot();
    let (mut added, mut absent) = (0, 0);
    for round in 0..60_u64 {
        let body = format!("{{\"name\": \"round-{round}\"}}");
        host.enter(|| {
            let mut stream = connect();
            stream
                .write_all(&request("POST", "/v1/containers", Some(&body)))
                .expect("room in the socket");
            thread::sleep(Duration::from_micros(round * 700));
        });
        // This one is answered after what was begun before.
        let names = assert_no_halves(host);
        match names.len() {
            0 => absent += 1,
            _ => {
                added += 1;
                host.remove_container(&format!("round-{round}"));
            }
        }
    }
    println!(
        "callers that left 0 to 41 ms after asking: {added} containers whole, {absent} not begun"
    );
    until_same(host, &before, PATIENCE, "after all callers have left");
}
