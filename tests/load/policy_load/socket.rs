//! The daemon's socket, asked directly: the moment of its answer is known.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use oncache_testbed::Host;
use serde_json::Value;

/// One request; returns status and body.
pub fn ask(host: &Host, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
    let mut stream = host
        .enter(|| UnixStream::connect("/run/oncache/oncache.sock").expect("the daemon answers"));
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a time-out");
    let body = body.map(Value::to_string).unwrap_or_default();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: oncache\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
    let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    (status.expect("a status"), body)
}
