//! Containers whose flows are carried, and what is said to be in the way of that.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use crate::ONCACHE;
use oncache_testbed::{Container, Hits, Host, Lab, PATIENCE, eventually};

const PORT: u16 = 7000;
/// Sizes of datagrams: shorter and longer than what programs and filters that drop let pass.
pub const SMALL: usize = 100;
pub const LARGE: usize = 1000;

/// Two containers on `alpha`, one on `beta` that sends back whatever it gets.
pub struct Scene {
    lab: Lab,
    pub web: Container,
    pub other: Container,
    server: Container,
    ended: Arc<AtomicBool>,
    echo: Option<thread::JoinHandle<()>>,
}

impl Scene {
    pub fn new(extra: &str) -> Self {
        let lab = Lab::two_hosts(ONCACHE);
        let alpha = lab.alpha();
        alpha.write_config(&alpha.default_config().extra(extra).to_string());
        let beta = lab.beta();
        beta.write_config(&beta.default_config().to_string());
        lab.start();
        let (web, other) = (alpha.add_container("web"), alpha.add_container("other"));
        let server = beta.add_container("server");
        let ended = Arc::new(AtomicBool::new(false));
        let socket = server.enter(|| UdpSocket::bind((server.ip, PORT)).expect("bind"));
        let timeout = Some(Duration::from_millis(50));
        socket.set_read_timeout(timeout).expect("a timeout");
        let echo = thread::spawn({
            let ended = ended.clone();
            move || {
                let mut bytes = [0; 2048];
                while !ended.load(Relaxed) {
                    if let Ok((length, from)) = socket.recv_from(&mut bytes) {
                        let _ = socket.send_to(&bytes[..length], from);
                    }
                }
            }
        });
        Self {
            lab,
            web,
            other,
            server,
            ended,
            echo: Some(echo),
        }
    }

    pub fn alpha(&self) -> &Host {
        self.lab.alpha()
    }

    /// A socket of a container's, for one flow.
    pub fn flow(&self, from: &Container) -> UdpSocket {
        let socket = from.enter(|| UdpSocket::bind((from.ip, 0)).expect("bind"));
        socket.connect((self.server.ip, PORT)).expect("connect");
        socket
    }

    /// How many of `count` datagrams come back.
    pub fn exchange(&self, flow: &UdpSocket, count: usize, size: usize) -> usize {
        self.exchange_within(flow, count, size, Duration::from_secs(2))
    }

    /// As [`Scene::exchange`], for datagrams that must not come back.
    pub fn leaked(&self, flow: &UdpSocket, count: usize) -> usize {
        self.exchange_within(flow, count, LARGE, Duration::from_millis(30))
    }

    fn exchange_within(
        &self,
        flow: &UdpSocket,
        count: usize,
        size: usize,
        patience: Duration,
    ) -> usize {
        let mut bytes = [0; 2048];
        flow.set_read_timeout(Some(patience)).expect("a timeout");
        let back = (0..count).filter(|_| {
            let _ = flow.send(&[7; LARGE][..size]);
            flow.recv(&mut bytes).is_ok_and(|length| length == size)
        });
        back.count()
    }

    /// How many of `count` small datagrams each way the fast path of `alpha` has carried.
    pub fn carried(&self, flow: &UdpSocket, count: usize) -> [u64; 2] {
        let before = Hits::of(self.alpha());
        let back = self.exchange(flow, count, SMALL);
        assert_eq!(back, count, "small datagrams are nobody's concern");
        let now = Hits::of(self.alpha());
        [now.egress - before.egress, now.ingress - before.ingress]
    }

    pub fn until_carried(&self, flow: &UdpSocket, what: &str) {
        eventually(&format!("carried: {what}"), PATIENCE, || {
            self.carried(flow, 5) == [5, 5]
        });
    }

    /// What `oncache status` says is in the way.
    pub fn not_carried(&self) -> Vec<String> {
        not_carried(self.alpha())
    }

    /// Makes the daemon compare, which it does by itself every five seconds: a device comes and goes.
    pub fn nudge(&self) {
        self.alpha()
            .sh("ip link add nudge type veth peer name nudge2; ip link del nudge");
    }

    pub fn until_known(&self, expected: &[&str]) {
        eventually(&format!("status says {expected:?}"), PATIENCE, || {
            self.not_carried() == expected
        });
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        self.echo.take().map(thread::JoinHandle::join);
    }
}

fn not_carried(host: &Host) -> Vec<String> {
    let status = host.status();
    let all = status["not_carried"].as_array().expect("a list");
    let text = |it: &serde_json::Value, key: &str| it[key].as_str().expect("text").to_owned();
    all.iter()
        .map(|it| format!("{}: {}", text(it, "device"), text(it, "reason")))
        .collect()
}
