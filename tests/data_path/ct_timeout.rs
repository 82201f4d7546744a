//! Timeouts that nftables gives to single connections: the lease is shorter than any of them, or a firewall
//! that takes no connection in mid-flow would cut one whose packets the fast path carries.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use crate::ONCACHE;
use oncache_testbed::{Container, Hits, Host, Lab, PATIENCE, eventually};

const TCP: u16 = 7001;
const UDP: u16 = 7002;

/// Longer than the lease configured, so that it is renewed within.
const SPELL: Duration = Duration::from_secs(6);

fn start() -> (Lab, Container, Container) {
    let lab = Lab::two_hosts(ONCACHE);
    for host in lab.all() {
        host.write_config(&host.default_config().lease("3s").to_string());
    }
    lab.start();
    let client = lab.alpha().add_container("client");
    let server = lab.beta().add_container("server");
    (lab, client, server)
}

/// A firewall for which a connection begins with its SYN, or with a datagram while `opens`; nothing in mid-flow.
fn firewall(host: &Host, seconds: u32, opens: bool) {
    host.set_sysctl("net.netfilter.nf_conntrack_tcp_loose", "0");
    let open = if opens { "accept" } else { "drop" };
    let text = format!(
        "table inet fw
         delete table inet fw
         table inet fw {{
             ct timeout quick_tcp {{
                 protocol tcp; l3proto ip; policy = {{ established: {seconds} }}
             }}
             ct timeout quick_udp {{
                 protocol udp; l3proto ip; policy = {{ unreplied: {seconds}, replied: {seconds} }}
             }}
             chain before {{
                 type filter hook prerouting priority -150;
                 tcp dport {TCP} ct timeout set \"quick_tcp\"
                 udp dport {UDP} ct timeout set \"quick_udp\"
             }}
             chain forward {{
                 type filter hook forward priority 0; policy drop;
                 ct state established accept
                 tcp flags & (syn | ack) == syn ct state new accept
                 udp dport {UDP} ct state new {open}
             }}
         }}"
    );
    let path = host.write_file("fw.nft", &text);
    host.run(&["nft", "-f", path.to_str().expect("UTF-8")]);
}

/// In tenths of a second (it is kept in ticks, which are a little shorter than thought), and what it is half of.
fn lease(host: &Host) -> (u64, String) {
    let cache = host.status()["cache"].clone();
    let bound = cache["lease_bound"].as_str().unwrap_or_default().to_owned();
    let ms = cache["lease_ms"].as_u64().expect("a lease");
    ((ms + 50) / 100, bound)
}

/// Sends and awaits the answer for a while, twenty times a second.
fn keep_asking(what: &str, spell: Duration, mut ask: impl FnMut(u32) -> bool) {
    let begun = Instant::now();
    let mut asked = 0;
    while begun.elapsed() < spell {
        asked += 1;
        assert!(ask(asked), "{what}: cut after {:?}", begun.elapsed());
        thread::sleep(Duration::from_millis(50));
    }
}

fn hits_beyond(host: &Host, before: Hits, what: &str) {
    let now = Hits::of(host);
    assert!(
        now.beyond(before),
        "{what} was carried: {before:?} to {now:?}"
    );
}

/// A connection whose server sends back what it gets.
fn connect(client: &Container, server: &Container) -> TcpStream {
    let listener = server.enter(|| TcpListener::bind((server.ip, TCP)).expect("bind"));
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut bytes = [0; 4];
        while stream.read_exact(&mut bytes).is_ok() && stream.write_all(&bytes).is_ok() {}
    });
    let stream = client.enter(|| TcpStream::connect((server.ip, TCP)).expect("connect"));
    let timeout = Some(Duration::from_secs(2));
    stream.set_read_timeout(timeout).expect("a timeout");
    stream
}

fn ask_by_tcp(stream: &mut TcpStream, number: u32) -> bool {
    let mut bytes = number.to_be_bytes();
    stream.write_all(&bytes).is_ok()
        && stream.read_exact(&mut bytes).is_ok()
        && bytes == number.to_be_bytes()
}

#[test]
fn a_connection_outlives_its_own_short_timeout() {
    let (lab, client, server) = start();
    let alpha = lab.alpha();
    assert_eq!(lease(alpha), (30, String::new()));
    firewall(alpha, 2, true);
    eventually("the lease is half of two seconds", PATIENCE, || {
        lease(alpha).0 == 10
    });
    let (_, bound) = lease(alpha);
    assert!(
        bound.starts_with("ct timeout quick_") && bound.ends_with(", 2 s"),
        "{bound}"
    );

    let mut stream = connect(&client, &server);
    let before = Hits::of(alpha);
    keep_asking("TCP", SPELL, |number| ask_by_tcp(&mut stream, number));
    hits_beyond(alpha, before, "TCP");

    // A shorter one still: a new epoch, or what was learned for the longer lease would outlive it.
    let raised = alpha.invalidations("lease");
    firewall(alpha, 1, true);
    eventually("the lease is half a second", PATIENCE, || {
        lease(alpha).0 == 5
    });
    assert_eq!(alpha.invalidations("lease"), raised + 1);
    drop(stream);

    let echo = server.enter(|| UdpSocket::bind((server.ip, UDP)).expect("bind"));
    thread::spawn(move || {
        let mut bytes = [0; 16];
        while let Ok((length, from)) = echo.recv_from(&mut bytes) {
            let _ = echo.send_to(&bytes[..length], from);
            if length == 1 {
                break;
            }
        }
    });
    let socket = client.enter(|| UdpSocket::bind((client.ip, 0)).expect("bind"));
    socket.connect((server.ip, UDP)).expect("connect");
    let timeout = Some(Duration::from_secs(2));
    socket.set_read_timeout(timeout).expect("a timeout");
    let mut ask = |number: u32| {
        let mut bytes = [0; 16];
        socket.send(&number.to_be_bytes()).is_ok() && socket.recv(&mut bytes).is_ok()
    };
    assert!(ask(0));
    // From now on a datagram that no connection is known for is refused.
    alpha.run(&["nft", "flush", "chain", "inet", "fw", "forward"]);
    alpha.run(&[
        "nft",
        "add",
        "rule",
        "inet",
        "fw",
        "forward",
        "ct",
        "state",
        "established",
        "accept",
    ]);
    let before = Hits::of(alpha);
    keep_asking("UDP", SPELL, &mut ask);
    hits_beyond(alpha, before, "UDP");
    let _ = socket.send(&[0]);

    alpha.run(&["nft", "delete", "table", "inet", "fw"]);
    eventually("the lease is what is configured", PATIENCE, || {
        lease(alpha) == (30, String::new())
    });
}
