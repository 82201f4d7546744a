//! nginx, and wrk by HTTP/1.1.

use std::time::Duration;

use nix::sys::signal::Signal;
use oncache_testbed::{Container, Host};

use super::{Load, Server, client_output};

const PORT: u16 = 5080;
const CONNECTIONS: usize = 16;
/// Bytes of the page that is asked for.
const PAGE: usize = 1024;

/// Starts it with one worker and one page, on a file system in memory.
pub fn start(host: &Host, place: &Container, cpu: usize) -> Result<Server, String> {
    let directory = "/run/testbed/nginx";
    let ip = place.ip;
    host.sh(&format!(
        "mkdir -p {directory}; head -c {PAGE} /dev/zero | tr '\\0' x > {directory}/page
         chown -R nobody {directory}"
    ));
    let config = format!(
        "daemon off; master_process off; worker_processes 1; pid {directory}/pid;
         error_log {directory}/error.log;
         events {{ worker_connections 1024; }}
         http {{
             access_log off; sendfile on; tcp_nopush off; keepalive_requests 100000000;
             client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
             fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;
             scgi_temp_path {directory}/scgi;
             server {{ listen {ip}:{PORT}; root {directory}; }}
         }}"
    );
    let path = host.write_file("nginx.conf", &config);
    let path = path.to_string_lossy().into_owned();
    let log = format!("{directory}/error.log");
    let command = ["nginx", "-c", &path, "-e", &log];
    Server::start(
        "nginx",
        place,
        "nobody",
        &command,
        (cpu, PORT, Signal::SIGQUIT),
    )
}

/// Asks for the page for a while, over some connections at once.
pub fn load(
    client: &Container,
    server: &Container,
    cpu: usize,
    time: Duration,
) -> Result<Load, String> {
    let (connections, seconds) = (CONNECTIONS.to_string(), time.as_secs().max(1).to_string());
    let url = format!("http://{}:{PORT}/page", server.ip);
    let command = [
        "wrk",
        "--threads",
        "1",
        "--connections",
        &connections,
        "--duration",
        &seconds,
        "--latency",
        &url,
    ];
    let (said, used) = client_output(client, "nobody", cpu, &command)?;
    judge(&said, used).ok_or_else(|| format!("wrk says what is not understood: {said}"))
}

fn judge(said: &str, used: Duration) -> Option<Load> {
    let errors = ["Socket errors", "Non-2xx"];
    if errors.iter().any(|it| said.contains(it)) {
        return None;
    }
    let after = |label: &str| {
        let rest = said.split(label).nth(1)?;
        rest.split_whitespace().next()
    };
    let before = |label: &str| said.split(label).next()?.split_whitespace().next_back();
    Some(Load {
        requests: before(" requests in")?.parse().ok()?,
        rate: after("Requests/sec:")?.parse().ok()?,
        median: microseconds(after(" 50%")?)?,
        high: microseconds(after(" 99%")?)?,
        used,
    })
}

/// wrk writes `87.00us`, `1.02ms` or `1.00s`.
fn microseconds(text: &str) -> Option<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    units.iter().find_map(|(unit, factor)| {
        let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
        Some(number * factor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Running 3s test @ http://10.42.2.2:5080/page
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   355.44us   45.80us   1.55ms   83.16%
    Req/Sec    44.77k     1.59k   46.99k    80.00%
  Latency Distribution
     50%  345.00us
     75%  367.00us
     90%  400.00us
     99%    1.52ms
  133679 requests in 3.00s, 161.51MB read
Requests/sec:  44543.46
Transfer/sec:     53.82MB
";

    #[test]
    fn what_wrk_says_is_read() {
        let load = judge(SAID, Duration::ZERO).expect("a report");
        assert_eq!(
            (load.requests, load.rate, load.median, load.high),
            (133_679.0, 44543.46, 345.0, 1520.0)
        );
    }

    #[test]
    fn a_report_of_errors_is_no_figure() {
        let errors = format!("{SAID}  Socket errors: connect 0, read 3, write 0, timeout 0\n");
        assert!(judge(&errors, Duration::ZERO).is_none());
    }
}
