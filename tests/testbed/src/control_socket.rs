//! Requests over the daemon's socket without a process for each: what a test of many rounds can
//! afford, and the moment of the answer is known.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::Host;

const SOCKET: &str = "/run/oncache/oncache.sock";

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the daemon answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: String,
    /// From before the connection to the answer's end.
    pub took: Duration,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

impl Host {
    /// Asks the host's daemon.
    ///
    /// # Panics
    /// If there is none, or what it answers within half a minute is not HTTP.
    #[must_use]
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let began = Instant::now();
        // The socket's path is in the host's own mount namespace.
        let stream = self.enter(|| UnixStream::connect(SOCKET));
        let mut stream = stream.unwrap_or_else(|error| panic!("{}: {SOCKET}: {error}", self.name));
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a read time-out");
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: oncache\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream
            .write_all(request.as_bytes())
            .expect("sending a request");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .expect("reading the answer");
        let took = began.elapsed();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
        Answer {
            status: status.unwrap_or_else(|| panic!("{method} {path}: no status: {answer}")),
            body: body.to_owned(),
            took,
        }
    }
}
