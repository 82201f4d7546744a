//! Requests that are none.

use std::fmt::Write as _;

use super::wire::{Holdings, exchange, request};
use crate::ONCACHE;
use oncache_testbed::{Lab, assert_same};

const ADD: &str = "/v1/containers";

fn with_body(head: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {ADD} HTTP/1.1\r\nhost: oncache\r\n{head}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn json(body: &str) -> Vec<u8> {
    request("POST", ADD, Some(body))
}

/// Each request, what it is, and the status that it has to be refused with. None: the connection
/// may end without an answer.
fn cases() -> Vec<(&'static str, Vec<u8>, Option<u16>)> {
    let mut many = String::new();
    for number in 0..200 {
        write!(many, "x-{number}: 1\r\n").expect("a string takes all");
    }
    let long = "x".repeat(100_000);
    let get = |rest: &str| format!("GET /v1/status HTTP/1.1\r\n{rest}\r\n").into_bytes();
    let random: Vec<u8> = (0..4096_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let chunk = [b"10000\r\n".as_slice(), &[b'a'; 0x10000], b"\r\n"].concat();
    vec![
        ("binary junk", random, Some(400)),
        ("zeroes", vec![0; 1000], Some(400)),
        (
            "a TLS hello",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
            Some(400),
        ),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), None),
        ("no version", b"GET /v1/status\r\n\r\n".to_vec(), Some(400)),
        (
            "a long path",
            format!("GET /{long} HTTP/1.1\r\n\r\n").into_bytes(),
            Some(431),
        ),
        ("a long header", get(&format!("x: {long}\r\n")), Some(431)),
        ("200 headers", get(&many), Some(431)),
        ("a header without a colon", get("nonsense\r\n"), Some(400)),
        (
            "no such path",
            request("GET", "/etc/passwd", None),
            Some(404),
        ),
        (
            "a path upwards",
            request("GET", "/v1/../v1/status", None),
            Some(404),
        ),
        (
            "no such method",
            request("BREW", "/v1/status", None),
            Some(405),
        ),
        (
            "another method",
            request("DELETE", "/v1/status", None),
            Some(405),
        ),
        (
            "a name that is not UTF-8",
            request("DELETE", "/v1/containers/%ff%fe", None),
            Some(400),
        ),
        (
            "a body without a type",
            with_body("content-length: 2", b"{}"),
            Some(400),
        ),
        ("an unfinished JSON", json("{\"name\": \"a\""), Some(400)),
        (
            "an unknown field",
            json("{\"name\": \"a\", \"root\": true}"),
            Some(400),
        ),
        ("a number for a name", json("{\"name\": 7}"), Some(400)),
        (
            "deep JSON",
            json(&format!("{{\"name\": {}", "[".repeat(100_000))),
            Some(400),
        ),
        (
            "a name of 200 KB",
            json(&format!("{{\"name\": {:?}}}", &long.repeat(2))),
            Some(400),
        ),
        (
            "a body that is too large",
            json(&format!("{{\"name\": {:?}}}", long.repeat(11))),
            Some(413),
        ),
        (
            "a body said to be endless",
            with_body(
                "content-type: application/json\r\ncontent-length: 18446744073709551615",
                b"{",
            ),
            Some(431),
        ),
        (
            "a negative length",
            with_body("content-length: -1", b"{}"),
            Some(400),
        ),
        (
            "two lengths",
            with_body("content-length: 2\r\ncontent-length: 20", b"{}"),
            Some(400),
        ),
        (
            "chunks without an end",
            with_body(
                "content-type: application/json\r\ntransfer-encoding: chunked",
                &chunk.repeat(64),
            ),
            Some(413),
        ),
        (
            "a chunk of no size",
            with_body(
                "content-type: application/json\r\ntransfer-encoding: chunked",
                b"zz\r\n",
            ),
            Some(400),
        ),
        (
            "a reading with a body",
            [get("content-length: 1000000\r\n"), vec![0; 1000]].concat(),
            Some(200),
        ),
    ]
}

#[test]
fn malformed_requests_are_refused_and_change_nothing() {
    let lab = Lab::two_hosts(ONCACHE);
    let host = lab.alpha();
    host.start();
    host.add_container("web");
    let before = host.snapshot();
    let _ = host.enter(|| exchange(&request("GET", "/v1/status", None)));
    let held = Holdings::at_rest(host);
    for (what, bytes, wanted) in cases() {
        let answer = host.enter(|| exchange(&bytes));
        assert!(
            answer.body.len() < 4096 || wanted == Some(200),
            "{what}: a long answer"
        );
        let line: String = answer.body.chars().take(150).collect();
        println!("{what}: {:?} {line}", answer.status);
        assert_eq!(answer.status, wanted, "{what}: {line}");
        // What the daemon refuses itself has the form of all its refusals.
        if answer.body.starts_with('{') && wanted != Some(200) {
            let refusal: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
            let line = refusal["error"].as_str().expect("a line");
            assert!(!line.contains('\n'), "{what}: {line}");
        }
    }
    let now = Holdings::at_rest(host);
    println!("before: {held:?}\nafter:  {now:?}");
    assert_eq!(held.descriptors, now.descriptors, "descriptors");
    assert!(
        now.peak - held.resident < 32 << 10,
        "memory: {held:?} {now:?}"
    );
    assert_same(&before, &host.snapshot(), "malformed requests");
    assert_eq!(
        host.status()["containers"].as_array().map(Vec::len),
        Some(1)
    );
}
