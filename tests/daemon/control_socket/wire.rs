//! Requests to the control socket as bytes, so that they can be wrong.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    thread,
    time::Duration,
};

use oncache_testbed::Host;

pub const SOCKET: &str = "/run/oncache/oncache.sock";

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection; from inside the host only.
pub fn connect() -> UnixStream {
    let stream = UnixStream::connect(SOCKET).expect("the daemon's socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
        .set_write_timeout(Some(PATIENCE))
        .expect("a time-out");
    stream
}

/// A request with an optional JSON body.
pub fn request(method: &str, path: &str, body: Option<&str>) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: oncache\r\nconnection: close\r\n");
    if let Some(body) = body {
        let length = body.len();
        text.push_str("content-type: application/json\r\n");
        text.push_str(&format!("content-length: {length}\r\n\r\n{body}"));
    } else {
        text.push_str("\r\n");
    }
    text.into_bytes()
}

/// What came back on a connection until its end.
pub struct Answer {
    /// The status; none if the connection ended without one.
    pub status: Option<u16>,
    pub body: String,
}

/// Reads an answer to its end.
pub fn answer(stream: &mut UnixStream) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        // Its end closed with bytes of ours unread: what was answered before that counts.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        outcome => drop(outcome?),
    }
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head
        .split_whitespace()
        .nth(1)
        .and_then(|code| code.parse().ok());
    Ok(Answer {
        status,
        body: body.to_owned(),
    })
}

/// Sends bytes and reads the answer. An answer may come before all was sent.
pub fn exchange(bytes: &[u8]) -> Answer {
    let mut stream = connect();
    let _ = stream.write_all(bytes);
    answer(&mut stream).unwrap_or_else(|error| {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]);
        panic!("{shown:?}: neither answered nor closed: {error}")
    })
}

/// What a daemon holds of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Holdings {
    pub descriptors: usize,
    /// Resident memory, in KiB: now and at most so far.
    pub resident: u64,
    pub peak: u64,
}

impl Holdings {
    /// While nobody asks anything: the least of a while, since the daemon's own work takes
    /// descriptors for a moment.
    pub fn at_rest(host: &Host) -> Self {
        let samples = (0..30).map(|_| {
            thread::sleep(Duration::from_millis(10));
            Self::of(host)
        });
        let least = samples.min_by_key(|holdings| holdings.descriptors);
        least.expect("some samples")
    }

    pub fn of(host: &Host) -> Self {
        let pid = host.daemon_pid().expect("a daemon");
        let directory = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let kibibytes = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let number = line.and_then(|line| line.split_whitespace().nth(1));
            number
                .and_then(|number| number.parse().ok())
                .expect("a size")
        };
        Self {
            descriptors: directory.count(),
            resident: kibibytes("VmRSS:"),
            peak: kibibytes("VmHWM:"),
        }
    }
}
