//! Requests over the daemon's socket without a process for each: what a test of many rounds can
//! afford.

#![allow(dead_code, reason = "no test takes everything")]

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use oncache_testbed::Host;
use serde_json::Value;

const SOCKET: &str = "/run/oncache/oncache.sock";

/// Asks a host's daemon, and returns the answer and how long it took.
///
/// # Panics
/// If there is no daemon, or it does not answer with status 200.
pub fn ask(host: &Host, method: &str, path: &str, body: &str) -> (Value, Duration) {
    let began = Instant::now();
    // The socket's path is in the host's own mount namespace.
    let stream = host.enter(|| UnixStream::connect(SOCKET));
    let mut stream = stream.unwrap_or_else(|error| panic!("{}: {SOCKET}: {error}", host.name));
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a time-out");
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: oncache\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("send a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read the answer");
    let took = began.elapsed();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    assert!(
        head.starts_with("HTTP/1.1 200"),
        "{}: {method} {path}: {answer}",
        host.name
    );
    (serde_json::from_str(body).expect("JSON"), took)
}
