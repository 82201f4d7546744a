//! Flows' entries that no packet has made: of so many flows as no bench could open,
//! written as the programs would have learned them.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use aya::maps::{Array, HashMap, Map, MapData, MapInfo, MapType};
use oncache_abi::{
    container::LocalContainer,
    entry::FlowEntry,
    flow::{FlowKey, Verdict, ticks},
    headers::UDP,
    peer::PeerNumber,
    settings::Settings,
};
use oncache_testbed::Host;

use crate::{column::Bed, traffic::spread::ports};

/// Where the daemon pins the maps, one directory for each layout and size.
const MAPS: &str = "/sys/fs/bpf/oncache/maps";

/// An hour: longer than any measurement.
const LEASE_NS: u64 = 3600 * 1_000_000_000;

/// Outer UDP source port of them all: the wire is one, whichever it is.
const OUTER_PORT: u16 = 40000;

/// Enters the flows of `Workload::Spread` into the maps of both hosts, both directions
/// live.
pub fn enter(bed: &Bed, flows: u32) -> Result<(), String> {
    let [client, server] = [bed.client.ip, bed.server.ip];
    let (alpha, beta) = (bed.lab.alpha(), bed.lab.beta());
    for (host, peer, local, remote) in
        [(alpha, beta, client, server), (beta, alpha, server, client)]
    {
        let ends = Ends {
            local,
            remote,
            behind: peer.address(),
            is_client: host.name == bed.client.host,
        };
        let entered = host.enter(|| fill(&ends, flows));
        entered.map_err(|error| format!("{}: enter flows: {error}", host.name))?;
    }
    Ok(())
}

/// How many flows' entries are live.
pub fn live(host: &Host) -> Result<usize, String> {
    let counted = host.enter(|| {
        let (epoch, now) = (epoch()?, now());
        let entered = flow_map()?;
        let all = entered.iter().filter_map(Result::ok);
        Ok(all
            .filter(|(flow, entry)| entry.verdict.judge(flow, now, epoch) == Verdict::Fast)
            .count())
    });
    counted.map_err(|error: Failure| format!("{}: read the flows: {error}", host.name))
}

/// What a host's maps take of the kernel's memory, in bytes: the flows', and all of them.
pub fn memory(host: &Host) -> Result<(u64, u64), String> {
    let taken = host.enter(|| {
        let (mut flows, mut all) = (0, 0);
        for entry in fs::read_dir(directory()?)? {
            let entry = entry?;
            let data = MapData::from_pin(entry.path())?;
            let taken = memlock(&data)?;
            all += taken;
            if entry.file_name() == "FLOWS" {
                flows = taken;
            }
        }
        Ok((flows, all))
    });
    taken.map_err(|error: Failure| format!("{}: memory of the maps: {error}", host.name))
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The kernel's own figure (kernel/bpf/syscall.c, `bpf_map_show_fdinfo`).
fn memlock(data: &MapData) -> Result<u64, Failure> {
    use std::os::fd::{AsFd, AsRawFd};
    let path = format!("/proc/thread-self/fdinfo/{}", data.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(line.ok_or("no memlock in fdinfo")?.trim().parse()?)
}

/// The one directory of maps.
fn directory() -> Result<PathBuf, Failure> {
    let all: Vec<PathBuf> = fs::read_dir(MAPS)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    match all.as_slice() {
        [one] => Ok(one.clone()),
        _ => Err(format!("{} directories in {MAPS}", all.len()).into()),
    }
}

fn pinned(name: &str) -> Result<MapData, Failure> {
    Ok(MapData::from_pin(Path::new(&directory()?).join(name))?)
}

fn flow_map() -> Result<HashMap<MapData, FlowKey, FlowEntry>, Failure> {
    let data = pinned("FLOWS")?;
    let map = match data.info().and_then(|info: MapInfo| info.map_type())? {
        MapType::LruHash => Map::LruHashMap(data),
        _ => Map::HashMap(data),
    };
    Ok(HashMap::try_from(map)?)
}

fn epoch() -> Result<u32, Failure> {
    let settings: Array<_, Settings> = Array::try_from(Map::Array(pinned("SETTINGS")?))?;
    Ok(settings.get(&0, 0)?.epoch)
}

fn now() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    let time = std::time::Duration::from(time.expect("a clock of every machine"));
    ticks(u64::try_from(time.as_nanos()).expect("less than centuries"))
}

/// What the flows lead from and to, as their local host sees it.
struct Ends {
    local: Ipv4Addr,
    remote: Ipv4Addr,
    /// The underlay address of the host that the remote container is behind.
    behind: Ipv4Addr,
    is_client: bool,
}

fn fill(ends: &Ends, flows: u32) -> Result<(), Failure> {
    let (epoch, now) = (epoch()?, now());
    let mut entered = flow_map()?;
    let address = |ip: Ipv4Addr| u32::from(ip).to_be();
    let containers: HashMap<_, u32, LocalContainer> =
        HashMap::try_from(Map::HashMap(pinned("CONTAINERS")?))?;
    let container = containers.get(&address(ends.local), 0)?;
    let end = (container.ifindex, container.mac.mac());
    if end.1 == [0; 6] {
        return Err("no packet has reached the container yet".into());
    }
    for number in 0..flows {
        let (near, far) = ports(number);
        let (local_port, remote_port) = if ends.is_client {
            (near, far)
        } else {
            (far, near)
        };
        let key = FlowKey {
            local: address(ends.local),
            remote: address(ends.remote),
            local_port: local_port.to_be(),
            remote_port: remote_port.to_be(),
            protocol: UDP,
            reserved: [0; 3],
        };
        let (lease, way) = (
            ticks(LEASE_NS),
            (PeerNumber(address(ends.behind)), OUTER_PORT),
        );
        let out = FlowEntry::learn_egress(None, &key, way, now, lease, epoch);
        let both = FlowEntry::learn_ingress(Some(out), &key, end, now, lease, epoch);
        entered.insert(key, both, 0)?;
    }
    Ok(())
}
