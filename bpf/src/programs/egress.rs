//! `egress`: container to NIC.

use aya_ebpf::{bindings::BPF_F_ADJ_ROOM_FIXED_GSO, helpers::bpf_redirect};
use oncache_abi::{
    container::LocalContainer,
    flow::FlowKey,
    headers::{ETH_LEN, TCP_LEN, source_port},
    mark::EGRESS_MISS,
    peer::{PeerHeaders, PeerNumber},
    reason::{Program, Reason},
    settings::Settings,
};

use crate::{
    counters::{count, counted},
    family::Family,
    inner::{self, Inner},
    jiffy::Jiffy,
    learning::{NO_PLACE, Place, close_flow, is_turned_away, judge},
    maps::{PEERS, constant, mac_constant, settings},
    packet::{Skb, mac_at},
    tunnel::{Tunnel, Varying},
};

/// Sends the packet by the caches, or says why not.
#[inline(always)]
pub fn run<F: Family, T: Tunnel>(skb: &Skb) -> Result<i32, Option<Reason>> {
    skb.clear_mark();
    if !skb.is_plain(F::ETHERTYPE) {
        return Err(Some(Reason::NotIpv4));
    }
    skb.ensure_linear((ETH_LEN + F::LEN + TCP_LEN) as u32);
    let inner: Inner<F> = inner::parse(skb, ETH_LEN)?;
    if !inner.is_to_network() || inner.is_to_gateway() {
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
    // SAFETY (of `constant!`): see `maps::volatile`.
    let mtu = unsafe { constant!(mtu) };
    let encapsulated = usize::from(inner.total_length) + T::OVERHEAD;
    if !inner.fits(skb, mtu) || encapsulated > usize::from(u16::MAX) {
        return Err(Some(Reason::OverMtu));
    }
    let settings = settings().ok_or(Reason::HelperFailed)?;
    let jiffy = Jiffy::present();
    let way = if inner.accepts {
        Err(if has_place { Reason::SynAck } else { NO_PLACE })
    } else {
        cached::<F>(skb, &key, inner.has_payload(), jiffy.tick(), &settings)
    };
    match way {
        Ok(way) => {
            let length = inner.segment_length(skb) + T::OVERHEAD as u32;
            check_device(skb, &jiffy, way.headers.ifindex, length)?;
            let action = encapsulate::<F, T>(skb, &inner, &key, way)?;
            count(Program::Egress, Reason::Hit);
            Ok(action)
        }
        Err(reason) => Err(Some(missed(skb, &inner, reason, &settings))),
    }
}

/// Marks what may be learned from, and says why the packet takes the slow path.
#[inline(always)]
fn missed<F: Family>(skb: &Skb, inner: &Inner<F>, reason: Reason, settings: &Settings) -> Reason {
    let reason = match reason {
        NO_PLACE if is_turned_away(settings.lease) => return Reason::Crowded,
        NO_PLACE if inner.accepts => Reason::SynAck,
        NO_PLACE => Reason::NoFlow,
        reason => reason,
    };
    let epoch = settings.epoch;
    let Some(local) = inner.sender() else {
        return Reason::NoContainer;
    };
    // SAFETY: the element stays its key's until this program is done.
    let local = unsafe { &*local };
    if let Err(reason) = check_sender::<F>(skb, local, epoch) {
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

/// Destination and source MAC address of the frame, which says itself what it holds.
#[inline(always)]
fn macs<F: Family>(skb: &Skb) -> Result<[u64; 2], Reason> {
    let frame: *mut [u8; ETH_LEN] = skb.at(0)?;
    let bytes = frame.cast::<u8>();
    // SAFETY: the fourteen bytes lie within the packet.
    unsafe {
        // At netkit's peer hook the packet's protocol is what the sender's socket says, not what is
        // written here; the slow path refuses a frame where they differ.
        if *bytes.add(12).cast::<u16>() != F::ETHERTYPE.to_be() {
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
fn check_sender<F: Family>(skb: &Skb, local: &LocalContainer, epoch: u32) -> Result<(), Reason> {
    let [destination, source] = macs::<F>(skb)?;
    if local.ifindex != skb.ifindex() {
        return Err(Reason::SourceMismatch);
    }
    if destination != gateway() {
        return Err(Reason::NotGateway);
    }
    let known = local.mac;
    if known.is_current(epoch) && source != known.bits() {
        return Err(Reason::SourceMismatch);
    }
    Ok(())
}

/// How a packet is to be encapsulated.
struct Way {
    headers: &'static PeerHeaders,
    /// Outer UDP source port, host byte order.
    port: u16,
}

/// The flow allowed both ways, its packet from the very device and MAC address that what comes back
/// is delivered to, and the peer known.
#[inline(always)]
fn cached<F: Family>(
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
    let [destination, source] = macs::<F>(skb)?;
    if local.ifindex != skb.ifindex() || source != local.mac || destination != gateway() {
        // What is wrong with the sender, if it is wrong and not the entry old, `missed` finds out.
        return Err(Reason::ContainerUnlearned);
    }
    let peer = place.peer().value(key, epoch).ok_or(Reason::NoHost)?;
    // SAFETY: PEERS has BPF_F_NO_PREALLOC: the element stays intact until this program ends.
    let headers = unsafe { PEERS.get(&PeerNumber(peer)) }.ok_or(Reason::HostUnlearned)?;
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

/// The underlay device must be there and take the packet with its headers, `length` in all, whatever it was when the
/// headers were learned: the slow path fragments what a smaller MTU does not let through, a redirect
/// would lose it.
#[inline(always)]
fn check_device(skb: &Skb, jiffy: &Jiffy, ifindex: u32, length: u32) -> Result<(), Reason> {
    match jiffy.mtu(skb, ifindex) {
        Some(mtu) if length <= mtu => Ok(()),
        _ => Err(Reason::OverUnderlay),
    }
}

/// Puts the learned headers before the packet and sends it out of the underlay device.
#[inline(always)]
fn encapsulate<F: Family, T: Tunnel>(
    skb: &Skb,
    inner: &Inner<F>,
    key: &FlowKey,
    way: Way,
) -> Result<i32, Reason> {
    skb.adjust_room(T::OVERHEAD as i32, T::ENCAP_FLAGS)?;
    if let Err(reason) = write_headers::<F, T>(skb, inner, key, &way) {
        // Not reached with a packet that was read before; the slow path gets it as it was.
        let _ = skb.adjust_room(-(T::OVERHEAD as i32), BPF_F_ADJ_ROOM_FIXED_GSO as u64);
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
fn write_headers<F: Family, T: Tunnel>(
    skb: &Skb,
    inner: &Inner<F>,
    key: &FlowKey,
    way: &Way,
) -> Result<(), Reason> {
    // All that is written, before anything is.
    let frame = skb.bytes(0, T::HEADER_LEN + F::LEN)?;
    let varying = Varying {
        inner_tos: inner.tos,
        inner_length: inner.total_length,
        id: identification(key),
        source_port: way.port,
    };
    // SAFETY: all that is written lies within the packet.
    unsafe {
        F::forward(frame.add(T::HEADER_LEN), inner, inner.tos);
        T::write(frame, way.headers, &varying);
    }
    Ok(())
}
