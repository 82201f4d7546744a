//! The limit of a design with veth devices: look up the destination, redirect, nothing else. What
//! oncache does beyond this is checks, bookkeeping and the outer headers.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_UNSPEC},
    helpers::{bpf_redirect, bpf_redirect_peer},
    macros::{classifier, map},
    maps::{HashMap, PerCpuArray},
    programs::TcContext,
};

/// Destination address (network byte order) -> ifindex.
#[map]
static DEVICES: HashMap<u32, u32> = HashMap::with_max_entries(1024, 0);

/// Packets redirected.
#[map]
static REDIRECTED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Where the packet goes, if it is IPv4 and its destination is known.
#[inline(always)]
fn device(context: &TcContext) -> Option<u32> {
    /// Offset of the destination address behind an Ethernet header.
    const DESTINATION: usize = 14 + 16;
    let raw: *mut __sk_buff = context.skb.skb;
    // SAFETY: the context is the program's own; volatile, so that the access is not narrowed.
    let (data, end, protocol) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*raw).data) as usize,
            core::ptr::read_volatile(&raw const (*raw).data_end) as usize,
            core::ptr::read_volatile(&raw const (*raw).protocol),
        )
    };
    if protocol != u32::from(0x0800_u16.to_be()) || data + DESTINATION + 4 > end {
        return None;
    }
    // SAFETY: the four bytes lie within the packet; BPF loads need no alignment.
    let destination = unsafe { *((data + DESTINATION) as *const u32) };
    // SAFETY: nobody writes the map while the programs run.
    let ifindex = unsafe { DEVICES.get(&destination) }.copied()?;
    // SAFETY: the element is this CPU's own.
    unsafe { *REDIRECTED.get_ptr_mut(0)? += 1 };
    Some(ifindex)
}

/// At tc ingress of the container's host-side device.
#[classifier]
pub fn floor_out(context: TcContext) -> i32 {
    match device(&context) {
        // SAFETY: no precondition.
        Some(ifindex) => unsafe { bpf_redirect(ifindex, 0) as i32 },
        None => TC_ACT_UNSPEC,
    }
}

/// At tc ingress of the underlay device.
#[classifier]
pub fn floor_in(context: TcContext) -> i32 {
    match device(&context) {
        // SAFETY: no precondition.
        Some(ifindex) => unsafe { bpf_redirect_peer(ifindex, 0) as i32 },
        None => TC_ACT_UNSPEC,
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // SAFETY: nothing here can panic; the verifier refuses the object if this were reachable.
    unsafe { core::hint::unreachable_unchecked() }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
