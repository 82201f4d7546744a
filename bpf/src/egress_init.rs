//! `egress_init`: learns from what the slow path has encapsulated.

use aya_ebpf::bindings::BPF_EXIST;
use oncache_abi::{
    cache::{HEADER_LEN, HostHeaders, HostWord},
    checksum::{fold, sum_header},
    entry::FlowEntry,
    headers::{ETH_LEN, ETHERTYPE_IPV4, varying},
    mark::EGRESS_MISS,
    reason::{Program, Reason},
};

use crate::{
    counters::count,
    inner,
    learning::{learn_flow, may_learn},
    maps::{EGRESS_HOST, EGRESS_IP, INGRESS, constant},
    outer,
    packet::Skb,
};

/// Enters the packet's headers and flow into the caches; the packet always goes on unchanged.
#[inline(always)]
pub fn run(skb: &Skb) -> Result<i32, Option<Reason>> {
    let settings = may_learn(skb, EGRESS_MISS)?;
    let epoch = settings.epoch;
    if !skb.is_plain_ipv4() {
        return Err(Some(Reason::NotIpv4));
    }
    let outer = outer::parse(skb)?;
    // SAFETY (of `constant!`): see `maps::volatile`.
    let (vni, this_host, network, netmask) = unsafe {
        (
            constant!(vni),
            constant!(host),
            constant!(network),
            constant!(netmask),
        )
    };
    if outer.source() != this_host || outer.inner_ethertype() != ETHERTYPE_IPV4.to_be() {
        return Err(Some(Reason::NotOverlay));
    }
    if outer.checksum() != 0 {
        return Err(Some(Reason::OuterChecksum));
    }
    if outer.vni() != vni {
        return Err(Some(Reason::OtherVni));
    }
    let inner = inner::parse(skb, HEADER_LEN)?;
    if inner.destination() & netmask != network {
        return Err(Some(Reason::OutsideNetwork));
    }
    // SAFETY: INGRESS has BPF_F_NO_PREALLOC: an element stays its key's until this program is done.
    let local = unsafe { INGRESS.get(&inner.source()) }.ok_or(Reason::NoContainer)?;
    if local.withheld != 0 {
        return Err(Some(Reason::Withheld));
    }
    let host = outer.destination();
    learn_headers(skb, host, epoch)?;
    learn_host(inner.destination(), host, epoch)?;
    let key = inner.key_from_local();
    let way = (host, outer.source_port());
    learn_flow(&key, &settings, |old, now, lease| {
        FlowEntry::learn_egress(old, &key, way, now, lease, epoch)
    })?;
    count(Program::EgressInit, Reason::Learned);
    Err(None)
}

/// Keeps the host that the container is behind, if it is not known yet: an LRU hash takes another
/// element for each write, which is most of what learning costs where flows crowd each other out.
#[inline(always)]
fn learn_host(container: u32, host: u32, epoch: u32) -> Result<(), Reason> {
    let word = HostWord::new(container, host, epoch);
    // SAFETY: one aligned word, whole whenever it is read; its tag tells whose it is.
    if unsafe { EGRESS_IP.get(&container) }.copied() == Some(word) {
        return Ok(());
    }
    EGRESS_IP
        .insert(&container, word, 0)
        .map_err(|_| Reason::HelperFailed)
}

/// Keeps the outer headers as the peer's template, if they are not known yet.
#[inline(always)]
fn learn_headers(skb: &Skb, host: u32, epoch: u32) -> Result<(), Reason> {
    // SAFETY: EGRESS_HOST has BPF_F_NO_PREALLOC: the element stays intact until this program ends.
    let known = unsafe { EGRESS_HOST.get(&host) }.ok_or(Reason::NotPeer)?;
    let learned = template(skb, epoch)?;
    if is_same(known, &learned) {
        return Ok(());
    }
    EGRESS_HOST
        .insert(&host, learned, u64::from(BPF_EXIST))
        .map_err(|_| Reason::HelperFailed)
}

/// Word by word: comparing arrays is a call of `memcmp`, a function that comes with the toolchain's
/// `core`. Where that was built without debugging information it has no BTF, and the kernel refuses a
/// program with functions that have none (kernel/bpf/verifier.c, `check_btf_func_early`).
#[inline(always)]
fn is_same(known: &HostHeaders, learned: &HostHeaders) -> bool {
    let mut differing = 0;
    for word in 0..known.template.len() {
        differing |= known.template[word] ^ learned.template[word];
    }
    differing == 0
        && known.ifindex == learned.ifindex
        && known.epoch == learned.epoch
        && known.ip_sum == learned.ip_sum
}

/// The packet's first 64 bytes with all that differs from packet to packet set to zero.
#[inline(always)]
fn template(skb: &Skb, epoch: u32) -> Result<HostHeaders, Reason> {
    let frame: *mut [u64; HEADER_LEN / 8] = skb.at(0)?;
    let mut headers = HostHeaders::UNLEARNED;
    // SAFETY: the 64 bytes lie within the packet; the template is as long.
    unsafe {
        headers.template = *frame;
        let bytes = (&raw mut headers.template).cast::<u8>();
        *bytes.add(varying::TOS) = 0;
        *bytes.add(varying::TOTAL_LENGTH).cast::<u16>() = 0;
        *bytes.add(varying::ID).cast::<u16>() = 0;
        *bytes.add(varying::CHECKSUM).cast::<u16>() = 0;
        *bytes.add(varying::SOURCE_PORT).cast::<u16>() = 0;
        *bytes.add(varying::UDP_LENGTH).cast::<u16>() = 0;
        headers.ip_sum = u32::from(fold(sum_header(&*bytes.add(ETH_LEN).cast::<[u32; 5]>())));
    }
    headers.ifindex = skb.ifindex();
    headers.epoch = epoch;
    Ok(headers)
}
