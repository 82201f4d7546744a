//! Conntrack sees little of a cached flow, and must stay true all the same.
#![allow(
    clippy::cast_possible_truncation,
    reason = "constants and sizes of the C interface, all small"
)]

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddrV4, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use oncache_testbed::{
    Container, Host, Lab, conntrack,
    traffic::{Direction, Rounds, RoundsReport, Transfer, transfer},
};

/// Drops what conntrack finds invalid, and new flows unless they begin properly, on both hosts.
fn be_strict(host: &Host) {
    host.sh(
        "nft 'table inet strict { chain forward { type filter hook forward priority -10; \
         ct state invalid counter drop; \
         tcp flags & (syn|ack) != syn ct state new counter drop; }; }'",
    );
}

/// Packets that the strict rules dropped.
fn refused(host: &Host) -> u64 {
    let listing: serde_json::Value =
        serde_json::from_str(&host.run(&["nft", "-j", "list", "table", "inet", "strict"]))
            .expect("nft lists in JSON");
    let objects = listing["nftables"].as_array().expect("a list");
    let statements = objects
        .iter()
        .filter_map(|object| object["rule"]["expr"].as_array())
        .flatten();
    statements
        .filter_map(|statement| statement["counter"]["packets"].as_u64())
        .sum()
}

/// Whether conntrack holds an entry to `port`.
fn is_tracked(host: &Host, port: u16) -> bool {
    conntrack(host)
        .iter()
        .any(|entry| entry.original.destination_port == Some(port))
}

#[test]
fn busy_flows_outlive_the_timeouts() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    for host in lab.all() {
        host.set_sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", "10");
        host.set_sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", "10");
    }
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    lab.all().iter().for_each(be_strict);
    let two_minutes = Duration::from_secs(120);
    // A round every 100 µs or so keeps both cores busy; the flows' packets matter, not their rate.
    let rounds = || {
        let mut rounds = Rounds::lasting(two_minutes);
        rounds.count = u64::MAX;
        rounds
    };
    let (tcp, udp) = scope(|scope| {
        let tcp = scope.spawn(|| rounds().tcp(&client, &server, 4001));
        let udp = scope.spawn(|| rounds().udp(&client, &server, 4002));
        let began = Instant::now();
        sleep(Duration::from_secs(2));
        let mut looks = 0;
        while began.elapsed() < two_minutes - Duration::from_secs(2) {
            for host in lab.all() {
                for port in [4001, 4002] {
                    assert!(is_tracked(host, port), "{}: {port} forgotten", host.name);
                }
            }
            looks += 1;
            sleep(Duration::from_secs(1));
        }
        println!("{looks} looks at conntrack found both flows");
        // One for each time-out would be too few to say that the flow was never forgotten.
        assert!(looks > 24, "{looks}");
        (
            tcp.join().expect("the rounds end"),
            udp.join().expect("the rounds end"),
        )
    });
    for (name, report) in [("TCP", &tcp), ("UDP", &udp)] {
        println!("{name}: {report}");
        assert_eq!(
            (report.lost, report.wrong, &report.error),
            (0, 0, &None),
            "{report}"
        );
    }
    for host in lab.all() {
        let counters = host.counters();
        println!("{}: lease {}, {counters}", host.name, lease(host));
        assert_eq!(
            refused(host),
            0,
            "{}: packets came as new or invalid",
            host.name
        );
        assert!(lease(host) <= 5000, "the lease follows the timeouts");
        assert_fast(&tcp, &udp, counters.get("egress", "hit"));
    }
}

fn assert_fast(tcp: &RoundsReport, udp: &RoundsReport, hits: u64) {
    let rounds = tcp.completed + udp.completed;
    assert!(hits * 100 > rounds * 99, "{hits} hits in {rounds} rounds");
}

fn lease(host: &Host) -> u64 {
    let status = host.oncache_json(&["status", "--json"]);
    status["cache"]["lease_ms"].as_u64().expect("a number")
}

#[test]
fn evictions_in_mid_flow_stall_nothing() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    lab.all().iter().for_each(be_strict);
    let over = AtomicBool::new(false);
    let (slowest, flushes) = scope(|scope| {
        let flusher = scope.spawn(|| {
            let mut flushes = 0;
            // Now the one host, now the other: mostly one direction is cached and the other not.
            for host in lab.all().iter().cycle() {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                host.oncache_ok(&["cache", "flush"]);
                flushes += 1;
                sleep(Duration::from_millis(3 + flushes % 17));
            }
            flushes
        });
        let mut slowest = Duration::ZERO;
        for number in 0..100 {
            let report = Transfer::new(&client, &server, 4003)
                .bytes(4 << 20)
                .direction(Direction::Both)
                .pace(40 << 20)
                .seed(number)
                .start()
                .wait();
            assert!(report.intact(), "transfer {number}: {report}");
            slowest = slowest.max(report.longest_pause());
        }
        over.store(true, Ordering::Relaxed);
        (slowest, flusher.join().expect("the flusher ends"))
    });
    println!("100 transfers under {flushes} flushes; the longest pause was {slowest:?}");
    assert!(flushes > 50, "{flushes}");
    for host in lab.all() {
        println!(
            "{}: {} refused, {}",
            host.name,
            refused(host),
            host.counters()
        );
        assert!(
            host.counters().get("egress", "hit") > 100,
            "some packets were fast"
        );
        assert_eq!(refused(host), 0, "{}: packets came as invalid", host.name);
    }
}

/// A connection from a fixed port, as `SO_REUSEADDR` lets it be had again. Until the peer has
/// acknowledged the FIN of the one before, the kernel has the port's addresses in use.
fn connect_from(port: u16, to: SocketAddrV4) -> TcpStream {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        match try_connect_from(port, to) {
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable && Instant::now() < until => {
                sleep(Duration::from_millis(1));
            }
            outcome => return outcome.expect("connect to the server"),
        }
    }
}

fn try_connect_from(port: u16, to: SocketAddrV4) -> std::io::Result<TcpStream> {
    let check = |outcome: libc::c_int| match outcome {
        -1 => Err(std::io::Error::last_os_error()),
        done => Ok(done),
    };
    let address = |ip: u32, port: u16| libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: ip },
        sin_zero: [0; 8],
    };
    let (from, to) = (
        address(0, port),
        address(u32::from(*to.ip()).to_be(), to.port()),
    );
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    let on: libc::c_int = 1;
    // SAFETY: plain system calls on a descriptor that the stream owns; what they are given lives
    // through them and is as long as said.
    unsafe {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        let socket = check(libc::socket(libc::AF_INET, kind, 0))?;
        let stream = TcpStream::from(OwnedFd::from_raw_fd(socket));
        let reuse = libc::SO_REUSEADDR;
        check(libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            reuse,
            (&raw const on).cast(),
            4,
        ))?;
        check(libc::bind(socket, (&raw const from).cast(), length))?;
        check(libc::connect(socket, (&raw const to).cast(), length))?;
        Ok(stream)
    }
}

/// Closes without waiting: the peer gets a RST.
fn reset(stream: &TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the option's value lives through the call and is as long as said.
    let outcome = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    assert_eq!(outcome, 0, "SO_LINGER: {}", std::io::Error::last_os_error());
}

/// How a connection of [`reuse_the_port`] ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    ClientResets,
    ServerCloses,
}

/// Answers five requests. Errors show at the client.
fn serve(mut stream: TcpStream, end: End) {
    let patience = Some(Duration::from_secs(5));
    let served = (|| {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(patience)?;
        let mut request = [0; 1000];
        for _ in 0..5 {
            stream.read_exact(&mut request)?;
            stream.write_all(&request)?;
        }
        if end == End::ClientResets {
            // Until the reset arrives.
            let _ = stream.read(&mut request);
        }
        Ok::<_, std::io::Error>(())
    })();
    if let Err(error) = served {
        println!("the server: {error}");
    }
}

/// How often the connection has sent something again: its SYN, while it has sent nothing else.
fn retransmits(stream: &TcpStream) -> u32 {
    // SAFETY: integers only, for which zeros are a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).expect("a short structure");
    // SAFETY: both pointers are to places that live through the call, the first as long as the second says.
    let outcome = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
    info.tcpi_total_retrans
}

/// Connects `count` times one after another from the same port; returns how many had to ask more than
/// once, and the slowest.
fn reuse_the_port(
    client: &Container,
    server: &Container,
    count: usize,
    end: End,
) -> (usize, Duration) {
    let listener = server.enter(|| TcpListener::bind((server.ip, 4004)).expect("listen"));
    // Whatever becomes of the client, the server's thread ends.
    listener
        .set_nonblocking(true)
        .expect("a listener that can be left");
    let until = Instant::now() + Duration::from_secs(60);
    let address = SocketAddrV4::new(server.ip, 4004);
    scope(|scope| {
        scope.spawn(move || {
            let mut accepted = 0;
            while accepted < count && Instant::now() < until {
                match listener.accept() {
                    Ok((stream, _)) => serve(stream, end),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        sleep(Duration::from_micros(100));
                        continue;
                    }
                    Err(error) => panic!("accept: {error}"),
                }
                accepted += 1;
            }
        });
        let (mut again, mut slowest) = (0, Duration::ZERO);
        for number in 0..count {
            let began = Instant::now();
            let mut stream = client.enter(|| connect_from(4005, address));
            again += usize::from(retransmits(&stream) > 0);
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .expect("set a time-out");
            let body = [u8::try_from(number % 251).expect("small"); 1000];
            let mut answer = [0; 1000];
            for _ in 0..5 {
                stream.write_all(&body).expect("write a request");
                stream
                    .read_exact(&mut answer)
                    .unwrap_or_else(|error| panic!("connection {number}: {error}"));
                assert_eq!(answer, body, "connection {number}");
            }
            match end {
                End::ClientResets => reset(&stream),
                End::ServerCloses => {
                    assert_eq!(stream.read(&mut answer).expect("read the end"), 0);
                }
            }
            drop(stream);
            slowest = slowest.max(began.elapsed());
            // A server in TIME-WAIT takes a SYN for a new one only by its sequence number or its time stamp (RFC 6191,
            // section 2; net/ipv4/tcp_minisocks.c, `tcp_timewait_state_process`). A connection as short as this
            // may end in the millisecond in which it began, with more bytes sent than the clock of the sequence numbers has
            // gone on; its client then tries again a second later, whatever is between the two.
            if matches!(end, End::ServerCloses) {
                sleep(Duration::from_millis(2));
            }
        }
        (again, slowest)
    })
}

#[test]
fn a_port_can_be_used_again_right_after_close() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    lab.all().iter().for_each(be_strict);
    for end in [End::ClientResets, End::ServerCloses] {
        let (again, slowest) = reuse_the_port(&client, &server, 300, end);
        println!(
            "300 connections from one port, {end:?}: {again} sent their SYN again; the slowest took \
             {slowest:?}"
        );
        // Where the port could not be used, none would get through at once. A SYN that is late on a
        // busy machine is none of ours.
        assert!(again < 30, "{end:?}: {again} of 300 sent their SYN again");
    }
    for host in lab.all() {
        println!(
            "{}: {} refused, {}",
            host.name,
            refused(host),
            host.counters()
        );
        assert_eq!(refused(host), 0, "{}: packets came as invalid", host.name);
        assert!(host.counters().get("egress", "hit") > 1000, "{}", host.name);
    }
}

#[test]
fn a_plain_host_and_a_caching_one_understand_each_other() {
    let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
    let beta = lab.beta();
    beta.write_config(&beta.default_config().cache(false).to_string());
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = beta.add_container("server");
    for (from, to, port) in [(&client, &server, 4006), (&server, &client, 4007)] {
        let report = transfer(from, to, port, 30 << 20, Direction::Both);
        println!("{report}");
        assert!(report.intact(), "{report}");
        let report = Rounds::new(500).udp(from, to, port + 10);
        assert_eq!((report.completed, report.lost), (500, 0), "{report}");
    }
    let counters = lab.alpha().counters();
    println!("alpha: {counters}");
    assert!(counters.get("egress", "hit") > 1500 && counters.get("ingress", "hit") > 1500);
    assert_eq!(beta.counters().get("egress", "hit"), 0);
}
