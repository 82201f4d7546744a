//! `egress`: container to NIC.

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO,
    },
    helpers::bpf_redirect,
};
use oncache_abi::{
    cache::{HEADER_LEN, HostHeaders, LocalContainer},
    checksum::fold,
    flow::{FlowKey, Verdict},
    headers::{
        ETH_LEN, ETHERTYPE_IPV4, IPV4_LEN, OVERHEAD, TCP_LEN, outer_tos, source_port, varying,
    },
    mark::EGRESS_MISS,
    reason::{Program, Reason},
    settings::Settings,
};

use crate::{
    counters::{count, counted},
    inner::{self, Inner},
    jiffy::Jiffy,
    learning::{NO_PLACE, Place, close_flow, is_turned_away},
    maps::{EGRESS_HOST, INGRESS, constant, mac_constant, settings},
    packet::{Skb, mac_at},
};

/// Keep an aggregate an aggregate: its segment size stays, and the kernel learns of the tunnel
/// headers that every segment needs (net/core/filter.c, `bpf_skb_net_grow`).
const ENCAP_FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
    | (ETH_LEN as u64) << 56;

/// Sends the packet by the caches, or says why not.
#[inline(always)]
pub fn run(skb: &Skb) -> Result<i32, Option<Reason>> {
    skb.clear_mark();
    if !skb.is_plain_ipv4() {
        return Err(Some(Reason::NotIpv4));
    }
    skb.ensure_linear((ETH_LEN + IPV4_LEN + TCP_LEN) as u32);
    let inner = inner::parse(skb, ETH_LEN)?;
    // SAFETY (of `constant!`): see `maps::volatile`.
    let (network, netmask, mtu) =
        unsafe { (constant!(network), constant!(netmask), constant!(mtu)) };
    // SAFETY (of `constant!`): see `maps::volatile`.
    let to_gateway = inner.destination() == unsafe { constant!(gateway_address) };
    if inner.destination() & netmask != network || to_gateway {
        return Err(Some(Reason::OutsideNetwork));
    }
    if inner.ttl <= 1 {
        return Err(Some(Reason::TtlExpires));
    }
    let key = inner.key_from_local();
    let mut has_place = true;
    if inner.changes_state {
        has_place = close_flow(&key);
        if !inner.accepts {
            return Err(Some(Reason::TcpState));
        }
    }
    if !inner.fits(skb, mtu) || usize::from(inner.total_length) + OVERHEAD > usize::from(u16::MAX) {
        return Err(Some(Reason::OverMtu));
    }
    let settings = settings().ok_or(Reason::HelperFailed)?;
    let jiffy = Jiffy::present();
    let way = if inner.accepts {
        Err(if has_place { Reason::SynAck } else { NO_PLACE })
    } else {
        cached(skb, &key, inner.has_payload(), jiffy.tick(), &settings)
    };
    match way {
        Ok(way) => {
            check_device(skb, &jiffy, way.headers.ifindex, inner.segment_length(skb))?;
            let action = encapsulate(skb, &inner, &key, way)?;
            count(Program::Egress, Reason::Hit);
            Ok(action)
        }
        Err(reason) => Err(Some(missed(skb, &inner, reason, &settings))),
    }
}

/// Marks what may be learned from, and says why the packet takes the slow path.
#[inline(always)]
fn missed(skb: &Skb, inner: &Inner, reason: Reason, settings: &Settings) -> Reason {
    let reason = match reason {
        NO_PLACE if is_turned_away(settings.lease) => return Reason::Crowded,
        NO_PLACE if inner.accepts => Reason::SynAck,
        NO_PLACE => Reason::NoFlow,
        reason => reason,
    };
    let epoch = settings.epoch;
    // SAFETY: INGRESS has BPF_F_NO_PREALLOC: an element stays its key's until this program is done.
    let Some(local) = (unsafe { INGRESS.get(&inner.source()) }) else {
        return Reason::NoContainer;
    };
    if let Err(reason) = check_sender(skb, local, epoch) {
        return reason;
    }
    if reason.is_miss() {
        if local.withheld != 0 {
            return Reason::Withheld;
        }
        skb.mark_missed(EGRESS_MISS, epoch);
    }
    reason
}

/// Destination and source MAC address of the frame, which says itself that it is IPv4.
#[inline(always)]
fn macs(skb: &Skb) -> Result<[u64; 2], Reason> {
    let frame: *mut [u8; ETH_LEN] = skb.at(0)?;
    let bytes = frame.cast::<u8>();
    // SAFETY: the fourteen bytes lie within the packet.
    unsafe {
        // At netkit's peer hook the packet's protocol is what the sender's socket says, not what is
        // written here; the slow path refuses a frame where they differ.
        if *bytes.add(12).cast::<u16>() != ETHERTYPE_IPV4.to_be() {
            return Err(Reason::NotIpv4);
        }
        Ok([mac_at(bytes), mac_at(bytes.add(6))])
    }
}

/// The gateway's MAC address.
#[inline(always)]
fn gateway() -> u64 {
    // SAFETY (of `mac_constant!`): see `maps::volatile`.
    unsafe { mac_constant!(gateway) }
}

/// The frame must come from the device and MAC address of the container that holds the source
/// address, and go to the gateway.
#[inline(always)]
fn check_sender(skb: &Skb, local: &LocalContainer, epoch: u32) -> Result<(), Reason> {
    let [destination, source] = macs(skb)?;
    if local.ifindex != skb.ifindex() {
        return Err(Reason::SourceMismatch);
    }
    if destination != gateway() {
        return Err(Reason::NotGateway);
    }
    let known = local.destination;
    if known.is_current(epoch) && source != known.bits() {
        return Err(Reason::SourceMismatch);
    }
    Ok(())
}

/// How a packet is to be encapsulated.
struct Way {
    headers: &'static HostHeaders,
    /// Outer UDP source port, host byte order.
    port: u16,
}

/// The flow allowed both ways, its packet from the very device and MAC address that what comes back
/// is delivered to, and the host known.
#[inline(always)]
fn cached(
    skb: &Skb,
    key: &FlowKey,
    has_payload: bool,
    now: u64,
    settings: &Settings,
) -> Result<Way, Reason> {
    let epoch = settings.epoch;
    let place = Place::of(key).ok_or(NO_PLACE)?;
    judge(place.verdict(), key, has_payload, now, epoch)?;
    let local = place.local(key, epoch).ok_or(Reason::ContainerUnlearned)?;
    let [destination, source] = macs(skb)?;
    if local.ifindex != skb.ifindex() || source != local.mac || destination != gateway() {
        // What is wrong with the sender, if it is wrong and not the entry old, `missed` finds out.
        return Err(Reason::ContainerUnlearned);
    }
    let host = place.host().value(key, epoch).ok_or(Reason::NoHost)?;
    // SAFETY: EGRESS_HOST has BPF_F_NO_PREALLOC: the element stays intact until this program ends.
    let headers = unsafe { EGRESS_HOST.get(&host) }.ok_or(Reason::HostUnlearned)?;
    if !headers.is_current(epoch) {
        return Err(Reason::HostUnlearned);
    }
    let port = match skb.flow_hash() {
        // As the slow path does it now: a connection that lost packets takes another hash, and so another
        // way through the network (net/ipv4/tcp_timer.c, `tcp_write_timeout`).
        Some(hash) => source_port(hash, settings.port_min, settings.port_max),
        // As the slow path did it: the same hash of the same flow, which costs more to calculate than all
        // else here but the room for the headers.
        None => place.port().value(key, epoch).ok_or(Reason::NoHost)? as u16,
    };
    Ok(Way { headers, port })
}

/// The filter cache's verdict as a reason.
#[inline(always)]
pub fn judge(
    word: oncache_abi::flow::FilterWord,
    key: &FlowKey,
    has_payload: bool,
    now: u64,
    epoch: u32,
) -> Result<(), Reason> {
    if word.is_fast(key, now, epoch) {
        return Ok(());
    }
    match word.judge(key, now, epoch) {
        Verdict::Fast => Ok(()),
        Verdict::Unknown => Err(Reason::NoFlow),
        Verdict::StaleEpoch => Err(Reason::StaleEpoch),
        Verdict::LeaseExpired => Err(Reason::LeaseExpired),
        Verdict::OneWay => Err(Reason::OneWay),
        // Half closed, a connection may go on for long: what it then carries is learned from.
        Verdict::Closed if has_payload => Err(Reason::NoFlow),
        Verdict::Closed => Err(Reason::Closing),
    }
}

/// The underlay device must be there and take the packet with its headers, whatever it was when the
/// headers were learned: the slow path fragments what a smaller MTU does not let through, a redirect
/// would lose it.
#[inline(always)]
fn check_device(skb: &Skb, jiffy: &Jiffy, ifindex: u32, length: u32) -> Result<(), Reason> {
    match jiffy.mtu(skb, ifindex) {
        Some(mtu) if length + OVERHEAD as u32 <= mtu => Ok(()),
        _ => Err(Reason::OverUnderlay),
    }
}

/// Puts the learned headers before the packet and sends it out of the underlay device.
#[inline(always)]
fn encapsulate(skb: &Skb, inner: &Inner, key: &FlowKey, way: Way) -> Result<i32, Reason> {
    skb.adjust_room(OVERHEAD as i32, ENCAP_FLAGS)?;
    if let Err(reason) = write_headers(skb, inner, key, &way) {
        // Not reached with a packet that was read before; the slow path gets it as it was.
        let _ = skb.adjust_room(-(OVERHEAD as i32), BPF_F_ADJ_ROOM_FIXED_GSO as u64);
        return Err(reason);
    }
    // SAFETY: no precondition.
    Ok(unsafe { bpf_redirect(way.headers.ifindex, 0) } as i32)
}

/// The ID of the outer packet: it may be fragmented on its way (the kernel leaves DF off), so it has
/// to differ from its neighbours' (RFC 6864, section 4.1). This CPU's packets are numbered by its own
/// count; those of two CPUs are as far apart as their flows' tags. A random number costs a call, and
/// comes round by chance sooner than after 65,536 packets.
#[inline(always)]
fn identification(key: &FlowKey) -> u16 {
    (counted(Program::Egress, Reason::Hit) as u16).wrapping_add(key.wide_tag() as u16)
}

#[inline(always)]
fn write_headers(skb: &Skb, inner: &Inner, key: &FlowKey, way: &Way) -> Result<(), Reason> {
    // All that is written, before anything is.
    let frame: *mut [u8; HEADER_LEN + IPV4_LEN] = skb.at(0)?;
    let tos = outer_tos(inner.tos);
    let total_length = (inner.total_length + OVERHEAD as u16).to_be();
    let id = identification(key);
    let sum = u64::from(way.headers.ip_sum)
        + u64::from(u16::from_ne_bytes([0, tos]))
        + u64::from(total_length)
        + u64::from(id);
    let port = way.port.to_be();
    let udp_length = (inner.total_length + (OVERHEAD - IPV4_LEN) as u16).to_be();
    // SAFETY: all that is written lies within the packet; BPF stores need no alignment.
    unsafe {
        let bytes = frame.cast::<u8>();
        inner::forward(bytes.add(HEADER_LEN).cast(), inner, inner.tos);
        *bytes.cast::<[u64; HEADER_LEN / 8]>() = way.headers.template;
        *bytes.add(varying::TOS) = tos;
        *bytes.add(varying::TOTAL_LENGTH).cast::<u16>() = total_length;
        *bytes.add(varying::ID).cast::<u16>() = id;
        *bytes.add(varying::CHECKSUM).cast::<u16>() = !fold(sum);
        *bytes.add(varying::SOURCE_PORT).cast::<u16>() = port;
        *bytes.add(varying::UDP_LENGTH).cast::<u16>() = udp_length;
    }
    Ok(())
}
