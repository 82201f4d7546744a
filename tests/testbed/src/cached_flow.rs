//! A UDP flow between two containers that both hosts carry by the fast path, to be bent in tests.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use crate::{container::Container, counters::Counters, lab::Lab};

const TIMEOUT: Option<Duration> = Some(Duration::from_millis(500));

/// A UDP flow between two containers that both hosts carry by the fast path.
#[derive(Debug)]
pub struct CachedFlow {
    /// The hosts.
    pub lab: Lab,
    /// On the first host.
    pub client: Container,
    /// On the second host.
    pub server: Container,
    /// The client's socket, connected to the server's port 5005.
    pub sender: UdpSocket,
    /// The server's socket.
    pub receiver: UdpSocket,
}

impl CachedFlow {
    /// A flow between the first two hosts of `lab`, whose daemons do not run yet.
    ///
    /// # Panics
    /// If it is not carried by the fast path after ten rounds.
    #[must_use]
    pub fn warm(lab: Lab) -> Self {
        lab.start();
        let client = lab.alpha().add_container("client");
        let server = lab.beta().add_container("server");
        let address = SocketAddr::from((server.ip, 5005));
        let receiver = server.enter(|| UdpSocket::bind(address).expect("bind in the server"));
        let sender = client.enter(|| UdpSocket::bind("0.0.0.0:5006").expect("bind in the client"));
        receiver.set_read_timeout(TIMEOUT).expect("set a time-out");
        sender.set_read_timeout(TIMEOUT).expect("set a time-out");
        sender.connect(address).expect("connect to the server");
        let flow = Self {
            lab,
            client,
            server,
            sender,
            receiver,
        };
        for _ in 0..10 {
            assert!(flow.asks(b"warm"), "the flow does not begin");
        }
        let before = flow.counters();
        assert!(flow.asks(b"fast"));
        for (now, before) in flow.counters().iter().zip(&before) {
            let counted = now.since(before);
            assert_eq!(
                (counted.get("egress", "hit"), counted.get("ingress", "hit")),
                (1, 1)
            );
        }
        flow
    }

    /// One request and its answer; false if either is lost.
    ///
    /// # Panics
    /// If the request arrives damaged.
    pub fn asks(&self, request: &[u8]) -> bool {
        // Refused at once where an earlier one was answered by ICMP.
        if self.sender.send(request).is_err() {
            return false;
        }
        let mut buffer = [0; 2048];
        let Ok((length, from)) = self.receiver.recv_from(&mut buffer) else {
            return false;
        };
        assert_eq!(&buffer[..length], request);
        self.receiver
            .send_to(&buffer[..length], from)
            .expect("send an answer");
        self.sender.recv(&mut buffer).is_ok()
    }

    /// Whether one more request and its answer are carried by both fast paths.
    #[must_use]
    pub fn is_fast(&self) -> bool {
        let before = self.counters();
        self.asks(b"fast?")
            && self.counters().iter().zip(&before).all(|(now, before)| {
                let counted = now.since(before);
                counted.get("egress", "hit") > 0 && counted.get("ingress", "hit") > 0
            })
    }

    /// The counters of both hosts.
    #[must_use]
    pub fn counters(&self) -> [Counters; 2] {
        [self.lab.alpha().counters(), self.lab.beta().counters()]
    }

    /// What both hosts count while `work` is done.
    pub fn counted<T>(&self, work: impl FnOnce() -> T) -> (T, [Counters; 2]) {
        let before = self.counters();
        let outcome = work();
        let now = self.counters();
        let counted = [now[0].since(&before[0]), now[1].since(&before[1])];
        println!("alpha: {}\nbeta: {}", counted[0], counted[1]);
        (outcome, counted)
    }
}
