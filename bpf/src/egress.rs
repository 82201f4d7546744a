//! `egress`: container to NIC.

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO,
    },
    helpers::{bpf_check_mtu, bpf_get_hash_recalc, bpf_get_prandom_u32, bpf_redirect},
};
use oncache_abi::{
    cache::{HEADER_LEN, HostHeaders, LocalContainer},
    checksum::fold,
    flow::{FlowKey, Verdict},
    headers::{ETH_LEN, IPV4_LEN, OVERHEAD, TCP_LEN, outer_tos, source_port, varying},
    mark::EGRESS_MISS,
    reason::{Program, Reason},
    settings::Settings,
};

use crate::{
    counters::count,
    inner::{self, Inner},
    learning::forget_flow,
    maps::{EGRESS_HOST, EGRESS_IP, FILTER, INGRESS, constant, now, settings},
    packet::Skb,
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
    let to_gateway = inner.destination == unsafe { constant!(gateway_address) };
    if inner.destination & netmask != network || to_gateway {
        return Err(Some(Reason::OutsideNetwork));
    }
    if inner.ttl <= 1 {
        return Err(Some(Reason::TtlExpires));
    }
    let key = inner.key_from_local();
    if inner.changes_state {
        forget_flow(&key);
        return Err(Some(Reason::TcpState));
    }
    if !inner.fits(skb, mtu) || usize::from(inner.total_length) + OVERHEAD > usize::from(u16::MAX) {
        return Err(Some(Reason::OverMtu));
    }
    // SAFETY: INGRESS has BPF_F_NO_PREALLOC: an element stays its key's until this program is done.
    let Some(local) = (unsafe { INGRESS.get(&inner.source) }) else {
        return Err(Some(Reason::NoContainer));
    };
    let settings = settings().ok_or(Reason::HelperFailed)?;
    check_sender(skb, local, settings.epoch)?;
    match cached(&inner, &key, local, settings.epoch) {
        Ok(headers) => {
            check_device(skb, headers.ifindex, inner.segment_length(skb))?;
            let action = encapsulate(skb, &inner, headers, &settings)?;
            count(Program::Egress, Reason::Hit);
            Ok(action)
        }
        Err(reason) => {
            skb.mark_missed(EGRESS_MISS, settings.epoch);
            Err(Some(reason))
        }
    }
}

/// The frame must come from the device and MAC address of the container that holds the source
/// address, and go to the gateway.
#[inline(always)]
fn check_sender(skb: &Skb, local: &LocalContainer, epoch: u32) -> Result<(), Reason> {
    let ethernet: *mut [u8; ETH_LEN] = skb.at(0)?;
    if local.ifindex != skb.ifindex() {
        return Err(Reason::SourceMismatch);
    }
    // SAFETY: the fourteen bytes lie within the packet.
    let frame = unsafe { &*ethernet };
    // SAFETY (of `constant!`): see `maps::volatile`.
    let gateway = unsafe { constant!(gateway) };
    if !same_mac(frame, 0, gateway) {
        return Err(Reason::NotGateway);
    }
    let known = local.destination;
    if known.is_current(epoch) && !same_mac(frame, 6, known.mac()) {
        return Err(Reason::SourceMismatch);
    }
    Ok(())
}

#[inline(always)]
fn same_mac(frame: &[u8; ETH_LEN], at: usize, mac: [u8; 6]) -> bool {
    frame[at] == mac[0]
        && frame[at + 1] == mac[1]
        && frame[at + 2] == mac[2]
        && frame[at + 3] == mac[3]
        && frame[at + 4] == mac[4]
        && frame[at + 5] == mac[5]
}

/// All three caches must agree: the flow allowed both ways, the way back ready, the host known.
#[inline(always)]
fn cached(
    inner: &Inner,
    key: &FlowKey,
    local: &LocalContainer,
    epoch: u32,
) -> Result<&'static HostHeaders, Reason> {
    // SAFETY: one aligned word, whole whenever it is read; its tag tells whose it is.
    let word = unsafe { FILTER.get(key) }.ok_or(Reason::NoFlow)?;
    judge(*word, key, epoch)?;
    if !local.destination.is_current(epoch) || !local.source.is_current(epoch) {
        return Err(Reason::ContainerUnlearned);
    }
    // SAFETY: one aligned word, as above.
    let word = unsafe { EGRESS_IP.get(&inner.destination) }.ok_or(Reason::NoHost)?;
    let host = word.host(inner.destination, epoch).ok_or(Reason::NoHost)?;
    // SAFETY: EGRESS_HOST has BPF_F_NO_PREALLOC: the element stays intact until this program ends.
    let headers = unsafe { EGRESS_HOST.get(&host) }.ok_or(Reason::HostUnlearned)?;
    if !headers.is_current(epoch) {
        return Err(Reason::HostUnlearned);
    }
    Ok(headers)
}

/// The filter cache's verdict as a reason.
#[inline(always)]
pub fn judge(word: oncache_abi::flow::FilterWord, key: &FlowKey, epoch: u32) -> Result<(), Reason> {
    match word.judge(key, now(), epoch) {
        Verdict::Fast => Ok(()),
        Verdict::Unknown => Err(Reason::NoFlow),
        Verdict::StaleEpoch => Err(Reason::StaleEpoch),
        Verdict::LeaseExpired => Err(Reason::LeaseExpired),
        Verdict::OneWay => Err(Reason::OneWay),
    }
}

/// The underlay device must be there and take the packet with its headers, whatever it was when the
/// headers were learned: the slow path fragments what a smaller MTU does not let through, a redirect
/// would lose it.
#[inline(always)]
fn check_device(skb: &Skb, ifindex: u32, length: u32) -> Result<(), Reason> {
    let outer = length + OVERHEAD as u32;
    // In: the length to be judged. Out: the device's MTU (net/core/filter.c, `bpf_skb_check_mtu`,
    // whose own verdict lets every aggregate pass).
    let mut mtu = outer;
    // SAFETY: the context is the program's own, and `mtu` lives through the call.
    let outcome = unsafe { bpf_check_mtu(skb.raw().cast(), ifindex, &raw mut mtu, 0, 0) };
    if outcome < 0 || outer > mtu {
        return Err(Reason::OverUnderlay);
    }
    Ok(())
}

/// Puts the learned headers before the packet and sends it out of the underlay device.
#[inline(always)]
fn encapsulate(
    skb: &Skb,
    inner: &Inner,
    headers: &HostHeaders,
    settings: &Settings,
) -> Result<i32, Reason> {
    // Before the packet grows: the hash is over the inner flow, as the slow path takes it.
    // SAFETY: the context is the program's own.
    let hash = unsafe { bpf_get_hash_recalc(skb.raw()) };
    skb.adjust_room(OVERHEAD as i32, ENCAP_FLAGS)?;
    if let Err(reason) = write_headers(skb, inner, headers, settings, hash) {
        // Not reached with a packet that was read before; the slow path gets it as it was.
        let _ = skb.adjust_room(-(OVERHEAD as i32), BPF_F_ADJ_ROOM_FIXED_GSO as u64);
        return Err(reason);
    }
    // SAFETY: no precondition.
    Ok(unsafe { bpf_redirect(headers.ifindex, 0) } as i32)
}

#[inline(always)]
fn write_headers(
    skb: &Skb,
    inner: &Inner,
    headers: &HostHeaders,
    settings: &Settings,
    hash: u32,
) -> Result<(), Reason> {
    // All that is written, before anything is.
    let frame: *mut [u8; HEADER_LEN + IPV4_LEN] = skb.at(0)?;
    inner::rewrite(skb, HEADER_LEN, inner.tos, inner.ttl - 1)?;
    let tos = outer_tos(inner.tos);
    let total_length = (inner.total_length + OVERHEAD as u16).to_be();
    // The outer packet may be fragmented on its way (the kernel leaves DF off), so its ID has to
    // differ from its neighbours' (RFC 6864, section 4.1).
    // SAFETY: no precondition.
    let id = unsafe { bpf_get_prandom_u32() } as u16;
    let sum = u64::from(headers.ip_sum)
        + u64::from(u16::from_ne_bytes([0, tos]))
        + u64::from(total_length)
        + u64::from(id);
    let port = source_port(hash, settings.port_min, settings.port_max).to_be();
    let udp_length = (inner.total_length + (OVERHEAD - IPV4_LEN) as u16).to_be();
    // SAFETY: all 64 bytes lie within the packet; BPF stores need no alignment.
    unsafe {
        let bytes = frame.cast::<u8>();
        *bytes.cast::<[u64; HEADER_LEN / 8]>() = headers.template;
        *bytes.add(varying::TOS) = tos;
        *bytes.add(varying::TOTAL_LENGTH).cast::<u16>() = total_length;
        *bytes.add(varying::ID).cast::<u16>() = id;
        *bytes.add(varying::CHECKSUM).cast::<u16>() = !fold(sum);
        *bytes.add(varying::SOURCE_PORT).cast::<u16>() = port;
        *bytes.add(varying::UDP_LENGTH).cast::<u16>() = udp_length;
    }
    Ok(())
}
