//! A UDP flow between two containers that both hosts carry by the fast path, to be bent in tests.

#![allow(dead_code, reason = "no test takes everything")]

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use oncache_testbed::{Container, Counters, Lab};

const TIMEOUT: Option<Duration> = Some(Duration::from_millis(500));

/// A UDP flow between two containers that both hosts carry by the fast path.
pub struct Flow {
    pub lab: Lab,
    pub client: Container,
    pub server: Container,
    pub sender: UdpSocket,
    pub receiver: UdpSocket,
}

impl Flow {
    /// A flow between two hosts on one wire.
    pub fn warm() -> Self {
        Self::warm_in(Lab::two_hosts(env!("CARGO_BIN_EXE_oncache")))
    }

    /// A flow between the first two hosts of `lab`, whose daemons do not run yet.
    pub fn warm_in(lab: Lab) -> Self {
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

    /// One request and its answer.
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
    pub fn is_fast(&self) -> bool {
        let before = self.counters();
        self.asks(b"fast?")
            && self.counters().iter().zip(&before).all(|(now, before)| {
                let counted = now.since(before);
                counted.get("egress", "hit") > 0 && counted.get("ingress", "hit") > 0
            })
    }

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

/// Sets an option of the socket's IPv4 layer.
pub fn set_option(socket: &UdpSocket, option: libc::c_int, value: &[u8]) {
    let length = libc::socklen_t::try_from(value.len()).expect("a short value");
    // SAFETY: the value lives through the call and is as long as said.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            option,
            value.as_ptr().cast(),
            length,
        )
    };
    assert_eq!(
        outcome,
        0,
        "option {option}: {}",
        std::io::Error::last_os_error()
    );
}
