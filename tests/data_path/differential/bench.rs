//! A lab in which the ends are deaf: what is sent is exactly what the test makes up, and what
//! passes is recorded everywhere.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use oncache_testbed::{
    Capture, CapturedFrame, Container, Counters, Host, Injector, Lab, RunningCapture, conntrack,
};

use crate::differential::{
    addresses::{CLIENT, End, NOBODY, SERVER},
    craft::{Crafter, Injection},
    packet::Way,
    permitted,
};

/// The longest frame: an aggregate and its outer headers.
const SNAP: usize = 66_000;
/// The device that a container sends on what it receives by.
const BEHIND: &str = "behind";
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a frame was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    Client,
    Server,
    /// What the containers send on, by a device that does no segmentation and no checksums: the
    /// kernel has done both, and shows whether it could.
    BehindClient,
    BehindServer,
    AlphaWire,
    BetaWire,
    /// The VXLAN devices: only what takes the slow path is here.
    AlphaTunnel,
    BetaTunnel,
}

impl Point {
    pub const ALL: [Self; 8] = [
        Self::Client,
        Self::Server,
        Self::BehindClient,
        Self::BehindServer,
        Self::AlphaWire,
        Self::BetaWire,
        Self::AlphaTunnel,
        Self::BetaTunnel,
    ];
    pub const CONTAINERS: [Self; 2] = [Self::Client, Self::Server];
}

/// One lab with its injectors and recordings.
pub struct Bench {
    lab: Lab,
    _ends: [Container; 2],
    containers: [Injector; 2],
    wires: [Injector; 2],
    captures: [RunningCapture; 8],
}

/// What came of one sequence.
pub struct Pass {
    /// For every frame that was sent the number of the error, if the kernel refused it.
    pub refused: Vec<Option<i32>>,
    /// What was recorded at each of [`Point::ALL`].
    pub frames: [Vec<CapturedFrame>; 8],
}

impl Bench {
    pub fn new(cache: bool) -> Self {
        let lab = Lab::two_hosts(env!("CARGO_BIN_EXE_oncache"));
        for host in lab.all() {
            quiet(host);
            let config = host.default_config().cache(cache).lease("10m");
            host.write_config(&config.to_string());
        }
        lab.start();
        let ends = [
            join(lab.alpha(), "client", &CLIENT),
            join(lab.beta(), "server", &SERVER),
        ];
        let neighbours = [(&CLIENT, &SERVER), (&SERVER, &CLIENT)];
        for (host, ((end, other), nobody)) in lab.all().iter().zip(neighbours.iter().zip(NOBODY)) {
            let [.., number, _] = end.ip.octets();
            // Nobody's is not permanent: those of the bridge are the daemon's, who would take it away.
            host.sh(&format!(
                "ip neigh replace {} lladdr {} dev oncache0 nud permanent
                 ip neigh replace {nobody} lladdr 02:00:00:00:77:{number:02x} dev oncache0 nud noarp
                 ip neigh replace {} lladdr {} dev eth1 nud permanent
                 ip neigh replace 192.168.50.99 lladdr 02:00:00:00:00:99 dev eth1 nud permanent
                 ip route add 203.0.113.0/24 via 192.168.50.99
                 ip route add blackhole 10.42.9.0/24
                 ethtool -K oncache-vx0 gro off",
                end.ip,
                mac(end.mac),
                other.host,
                mac(other.underlay),
            ));
        }
        let [alpha, beta] = [lab.alpha(), lab.beta()];
        let record = |place, device| Capture::on(place, device).snap(SNAP).start();
        Self {
            containers: [&ends[0], &ends[1]].map(|end| Injector::on(end, "eth0")),
            wires: [alpha, beta].map(|host| Injector::on(host, "eth1")),
            captures: [
                record(&ends[0], "eth0"),
                record(&ends[1], "eth0"),
                record(&ends[0], BEHIND),
                record(&ends[1], BEHIND),
                record(alpha, "eth1"),
                record(beta, "eth1"),
                record(alpha, "oncache-vx0"),
                record(beta, "oncache-vx0"),
            ],
            _ends: ends,
            lab,
        }
    }

    /// What both hosts have counted so far.
    pub fn counters(&self) -> [Counters; 2] {
        [self.lab.alpha().counters(), self.lab.beta().counters()]
    }

    /// What conntrack on each host holds of the TCP flows between the two containers: by host and
    /// the client's port, the state and whether packets were seen both ways.
    pub fn connections(&self) -> BTreeMap<(String, Option<u16>), (Option<String>, bool)> {
        let ends = [CLIENT.ip, SERVER.ip].map(IpAddr::from);
        let hosts = self.lab.all().iter();
        let entries = hosts.flat_map(|host| {
            let entries = conntrack(host).into_iter();
            entries.map(|entry| (host.name.clone(), entry))
        });
        entries
            .filter(|(_, entry)| entry.protocol == "tcp")
            .filter(|(_, entry)| [entry.original.source, entry.original.destination] == ends)
            .map(|(host, entry)| {
                let key = (host, entry.original.source_port);
                (key, (entry.state, entry.unreplied))
            })
            .collect()
    }

    /// Sends the sequence and waits until its last two packets, which have to be `marks`, one each
    /// way and both by the slow path, have passed everywhere: then all has arrived that ever will,
    /// because one CPU does all the work, in order.
    pub fn run(&self, crafter: &Crafter, marks: [usize; 2]) -> Pass {
        let refused = thread::scope(|scope| {
            let sender = scope.spawn(|| {
                stay_on_one_cpu();
                crafter
                    .injections
                    .iter()
                    .map(|one| self.send(one))
                    .collect()
            });
            sender.join().expect("sending does not panic")
        });
        let deadline = Instant::now() + PATIENCE;
        let mut frames: [Vec<CapturedFrame>; 8] = Default::default();
        // Behind a container there is only what arrives there.
        let mut missing = Point::ALL.map(|point| match point {
            Point::BehindClient => [false, true],
            Point::BehindServer => [true, false],
            _ => [true, true],
        });
        while missing.iter().flatten().any(|missing| *missing) {
            assert!(
                Instant::now() < deadline,
                "the marks at the sequence's end did not pass: {missing:?} of {:?}",
                Point::ALL
            );
            let recordings = self.captures.iter().zip(&mut frames).zip(&mut missing);
            for (point, ((capture, frames), missing)) in Point::ALL.into_iter().zip(recordings) {
                for frame in capture.take() {
                    if let Some(owner) = permitted::owner(point, &frame.bytes, crafter) {
                        for (mark, missing) in marks.iter().zip(&mut *missing) {
                            *missing &= owner != *mark;
                        }
                    }
                    frames.push(frame);
                }
            }
            thread::sleep(Duration::from_micros(100));
        }
        Pass { refused, frames }
    }

    fn send(&self, injection: &Injection) -> Option<i32> {
        let injectors = if injection.on_wire {
            &self.wires
        } else {
            &self.containers
        };
        let injector = match injection.way {
            Way::Forth => &injectors[0],
            Way::Back => &injectors[1],
        };
        injector.send(&injection.offload, &injection.bytes).err()
    }

    /// Ends the recordings; how many frames they lost.
    pub fn finish(self) -> usize {
        self.captures
            .into_iter()
            .map(|capture| capture.stop().lost)
            .sum()
    }
}

/// Takes away what depends on the time and not on the packets: see `permitted`.
fn quiet(host: &Host) {
    for (sysctl, value) in permitted::SETTINGS {
        host.set_sysctl(sysctl, value);
    }
}

/// Adds a container whose own network stack neither hears nor says anything.
fn join(host: &Host, name: &str, end: &End) -> Container {
    let container = host.add_container_with(name, &["--ip", &end.ip.to_string()]);
    assert_eq!(container.ip, end.ip);
    container.sh(&format!(
        "sysctl -qw net.ipv6.conf.all.disable_ipv6=1
         ip link set eth0 mtu 2000
         ip -o link show dev eth0 | grep -q {}
         ip link add {BEHIND} type veth peer name end
         ip link set {BEHIND} mtu 2000
         ip link set end mtu 2000
         ethtool -K {BEHIND} tso off gso off tx off sg off > /dev/null
         ip link set {BEHIND} up
         ip link set end up
         nft add table netdev deaf
         nft add chain netdev deaf ingress '{{ type filter hook ingress device eth0 priority -500; policy drop; }}'
         nft add rule netdev deaf ingress fwd to {BEHIND}",
        mac(end.mac)
    ));
    container
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// Keeps the calling thread on the first CPU that it may use: the kernel then handles each packet
/// on that one, in the order sent.
fn stay_on_one_cpu() {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).expect("a thread has CPUs");
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(first.expect("a thread may use some CPU"))
        .expect("a CPU of the set");
    sched_setaffinity(this, &one).expect("one of the CPUs it had");
}
