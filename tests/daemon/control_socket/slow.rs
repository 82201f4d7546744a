//! Callers that send or take nothing.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, MapData};
use oncache::datapath::{PIN_ROOT, Sizes, pins};
use oncache_abi::{entry::FlowEntry, flow::FlowKey, peer::PeerNumber};
use oncache_testbed::{Host, Lab, PATIENCE, eventually};

use super::wire::{Holdings, connect, request};
use crate::ONCACHE;

/// Opens connections, each with some bytes sent.
fn held_open(host: &Host, count: usize, bytes: &[u8]) -> Vec<UnixStream> {
    host.enter(|| {
        let open = || {
            let mut stream = connect();
            stream.write_all(bytes).expect("room in the socket");
            stream
        };
        (0..count).map(|_| open()).collect()
    })
}

#[test]
fn callers_that_never_finish_are_shown_out() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.start();
    let _ = host.status();
    let before = Holdings::at_rest(host);
    let begun = Instant::now();
    // More than there is room for, and some of them in the middle of a head or a body.
    let body = b"POST /v1/containers HTTP/1.1\r\nhost: o\r\ncontent-type: application/json\r\ncontent-length: 30\r\n\r\n{\"name\":";
    let silent = held_open(host, 300, b"");
    let heads = held_open(host, 300, b"GET /v1/status HTTP/1.1\r\nhost: on");
    let bodies = held_open(host, 100, body);
    let opened = begun.elapsed();
    let begun = Instant::now();
    assert!(host.oncache(&["status"]).status.success());
    println!(
        "700 slow callers, opened in {opened:?}; the next one is answered after {:?}",
        begun.elapsed()
    );
    let during = Holdings::of(host);
    println!("before: {before:?}\nduring: {during:?}");
    assert!(during.descriptors <= before.descriptors + 256, "{during:?}");
    for (what, streams) in [("silent", silent), ("heads", heads), ("bodies", bodies)] {
        for mut stream in streams {
            let mut answer = String::new();
            let ended = stream.read_to_string(&mut answer);
            assert!(ended.is_ok(), "{what}: still open: {ended:?}");
            let wanted = if what == "bodies" {
                "did not arrive within"
            } else {
                ""
            };
            assert!(answer.contains(wanted), "{what}: {answer}");
        }
    }
    eventually("its descriptors are free", PATIENCE, || {
        Holdings::of(host).descriptors <= before.descriptors
    });
    println!("after:  {:?}", Holdings::of(host));
}

/// Puts flows into the daemon's map.
fn fill_filter(host: &Host, flows: u16) {
    let root = std::path::Path::new(PIN_ROOT);
    let pin = pins::maps(root, Sizes { flows: 65536 }).join("FLOWS");
    host.enter(|| {
        let map = aya::maps::Map::LruHashMap(MapData::from_pin(pin).expect("the map of flows"));
        let mut map: HashMap<MapData, FlowKey, FlowEntry> =
            HashMap::try_from(map).expect("flows and words");
        for port in 0..flows {
            let key = FlowKey {
                local: u32::from_ne_bytes([10, 42, 1, 2]),
                remote: u32::from_ne_bytes([10, 42, 2, 2]),
                local_port: port.to_be(),
                remote_port: 80_u16.to_be(),
                protocol: 6,
                reserved: [0; 3],
            };
            let word = FlowEntry::learn_egress(None, &key, (PeerNumber(1), 1), 0, 1 << 30, 1);
            map.insert(key, word, 0).expect("room in the cache");
        }
    });
}

#[test]
fn callers_that_do_not_take_their_answer_cost_a_bounded_amount() {
    const FLOWS: u16 = 20_000;
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.start();
    fill_filter(host, FLOWS);
    let listing = host.oncache_ok(&["cache", "list", "flows", "--json"]);
    assert!(listing.len() > 1 << 20, "{} bytes", listing.len());
    let before = Holdings::at_rest(host);
    let begun = Instant::now();
    let askers = held_open(host, 100, &request("GET", "/v1/cache", None));
    std::thread::sleep(Duration::from_secs(2));
    let during = Holdings::of(host);
    assert!(host.oncache(&["status"]).status.success());
    println!(
        "100 listings of {} bytes asked for and not taken; before: {before:?}\nduring: {during:?}",
        listing.len()
    );
    assert!(
        during.peak < before.peak + (64 << 10),
        "memory: {before:?} {during:?}"
    );
    // The two whose turn it is are shown out, and make room for the next two.
    eventually("some are shown out", 4 * PATIENCE, || {
        Holdings::of(host).descriptors + 2 <= during.descriptors
    });
    println!("the first two are shown out after {:?}", begun.elapsed());
    drop(askers);
    let asked = Instant::now();
    let again = host.oncache_ok(&["cache", "list", "flows", "--json"]);
    println!("the next listing is there after {:?}", asked.elapsed());
    assert!(again.len() > 1 << 20);
    eventually("its descriptors are free", PATIENCE, || {
        Holdings::of(host).descriptors <= before.descriptors
    });
}
