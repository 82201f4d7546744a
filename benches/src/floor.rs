//! The `floor` column: the programs of `floor/`, and containers that need nothing else.

use aya::{
    Ebpf,
    maps::{HashMap, MapData, PerCpuArray},
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};
use oncache_testbed::{Container, Host, Lab, UNDERLAY};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/floor.bpf.o"));

/// The container's device on the host.
pub const DEVICE: &str = "floor0";

/// What the overlay leaves of 1500 bytes, so that segments are of the same size.
const MTU: &str = "1450";

/// The loaded programs of both hosts; they go with this.
pub struct Floor {
    hosts: Vec<Ebpf>,
}

impl Floor {
    /// Makes one container on each host and the way between them.
    pub fn new(lab: &Lab) -> Result<(Self, Container, Container), String> {
        let [client, server] = [(lab.alpha(), 2), (lab.beta(), 3)].map(|(host, last)| {
            let other = if last == 2 { lab.beta() } else { lab.alpha() };
            container(host, last, &other.underlay_mac())
        });
        let ends = [client.ip, server.ip];
        let mut hosts = Vec::new();
        for (host, [own, other]) in [(lab.alpha(), ends), (lab.beta(), [ends[1], ends[0]])] {
            let loaded = host.enter(|| load(host, own, other));
            hosts.push(
                loaded.map_err(|error| format!("{}: the floor's programs: {error}", host.name))?,
            );
        }
        Ok((Self { hosts }, client, server))
    }

    /// Packets that the programs of both hosts have redirected.
    pub fn redirected(&self) -> Result<u64, String> {
        let mut sum = 0;
        for host in &self.hosts {
            let map = host
                .map("REDIRECTED")
                .ok_or("the floor's counter is missing")?;
            let counter: PerCpuArray<&MapData, u64> = map
                .try_into()
                .map_err(|error| format!("the floor's counter: {error}"))?;
            let values = counter
                .get(&0, 0)
                .map_err(|error| format!("the floor's counter: {error}"))?;
            sum += values.iter().sum::<u64>();
        }
        Ok(sum)
    }
}

/// A container whose MAC address is its host's own, so that what comes by the wire is addressed to
/// the device it comes in by.
fn container(host: &Host, last: u8, other_mac: &str) -> Container {
    let place = host.add_netns("floor");
    let mac = host.underlay_mac();
    let other = if last == 2 { 3 } else { 2 };
    host.sh(&format!(
        "ip link add {DEVICE} mtu {MTU} type veth peer name eth0 netns floor address {mac} mtu {MTU}
         ip link set {DEVICE} up
         ip -n floor address add 10.42.0.{last}/24 dev eth0
         ip -n floor link set eth0 up
         ip -n floor neighbour add 10.42.0.{other} lladdr {other_mac} dev eth0 nud permanent"
    ));
    host.adopt("floor", [10, 42, 0, last].into(), place)
}

fn load(
    host: &Host,
    own: std::net::Ipv4Addr,
    other: std::net::Ipv4Addr,
) -> Result<Ebpf, Box<dyn std::error::Error + Send + Sync>> {
    let mut programs = Ebpf::load(OBJECT)?;
    let mut devices: HashMap<_, u32, u32> = programs
        .map_mut("DEVICES")
        .ok_or("no map DEVICES")?
        .try_into()?;
    for (address, device) in [(own, DEVICE), (other, UNDERLAY)] {
        let index: u32 = std::fs::read_to_string(format!("/sys/class/net/{device}/ifindex"))?
            .trim()
            .parse()?;
        devices.insert(u32::from_ne_bytes(address.octets()), index, 0)?;
    }
    for (name, device) in [("floor_out", DEVICE), ("floor_in", UNDERLAY)] {
        let program: &mut SchedClassifier =
            programs.program_mut(name).ok_or("no program")?.try_into()?;
        program.load()?;
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        program
            .attach_with_options(device, TcAttachType::Ingress, order)
            .map_err(|error| {
                format!(
                    "{name} at {device} of {}: {error}; tcx takes Linux 6.6",
                    host.name
                )
            })?;
    }
    Ok(programs)
}
