//! What the programs ask the kernel once a jiffy (1 to 10 ms), not once a packet: each CPU keeps the
//! answers until the next one begins.

use aya_ebpf::{
    helpers::{bpf_check_mtu, bpf_jiffies64, bpf_ktime_get_coarse_ns},
    macros::map,
    maps::PerCpuArray,
};
use oncache_abi::flow::ticks;

use crate::packet::Skb;

/// The answers, and the jiffy they are of. Every jiffy has another number, and none is zero: they are
/// counted from a number of their own (include/linux/jiffies.h, `INITIAL_JIFFIES`).
#[repr(C)]
struct Answers {
    jiffy: u64,
    /// The lease tick.
    tick: u64,
    /// A device (high half) and its MTU (low half); zero while not asked.
    mtu: u64,
}

/// Each load's own: what is in it is worth nothing to the next.
#[map]
static JIFFY: PerCpuArray<Answers> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's answers of the present jiffy, the tick among them; none where there is no place for them.
///
/// The programs run with softirqs off, one at a time on a CPU. Where they are not (a real-time kernel
/// may let them be preempted), each word is still whole, and the tick is written before the jiffy.
pub struct Jiffy {
    answers: Option<*mut Answers>,
}

impl Jiffy {
    /// The present one.
    #[inline(always)]
    pub fn present() -> Self {
        // SAFETY: the helper takes no argument and has no precondition. The JIT makes one load of it.
        let jiffy = unsafe { bpf_jiffies64() };
        let answers = JIFFY.get_ptr_mut(0);
        if let Some(answers) = answers {
            // SAFETY: the element is this CPU's own and aligned; volatile: each word whole, in this order.
            unsafe {
                if core::ptr::read_volatile(&raw const (*answers).jiffy) != jiffy {
                    core::ptr::write_volatile(&raw mut (*answers).mtu, 0);
                    core::ptr::write_volatile(&raw mut (*answers).tick, ask_tick());
                    core::ptr::write_volatile(&raw mut (*answers).jiffy, jiffy);
                }
            }
        }
        Self { answers }
    }

    /// The lease tick, two jiffies behind at most: the coarse clock is set once a jiffy, a little after
    /// jiffies are (kernel/time/tick-sched.c, `tick_do_update_jiffies64`).
    #[inline(always)]
    pub fn tick(&self) -> u64 {
        match self.answers {
            // SAFETY: as in `present`.
            Some(answers) => unsafe { core::ptr::read_volatile(&raw const (*answers).tick) },
            None => ask_tick(),
        }
    }

    /// The device's MTU; none if there is no such device.
    #[inline(always)]
    pub fn mtu(&self, skb: &Skb, ifindex: u32) -> Option<u32> {
        let answers = self.answers?;
        // SAFETY: as in `present`.
        unsafe {
            let known = core::ptr::read_volatile(&raw const (*answers).mtu);
            if (known >> 32) as u32 == ifindex {
                return Some(known as u32);
            }
            let mtu = ask_mtu(skb, ifindex)?;
            core::ptr::write_volatile(
                &raw mut (*answers).mtu,
                u64::from(ifindex) << 32 | u64::from(mtu),
            );
            Some(mtu)
        }
    }
}

/// The present lease tick, for who needs nothing else.
#[inline(always)]
pub fn now() -> u64 {
    Jiffy::present().tick()
}

#[inline(always)]
fn ask_tick() -> u64 {
    // SAFETY: the helper takes no argument and has no precondition.
    ticks(unsafe { bpf_ktime_get_coarse_ns() })
}

#[inline(always)]
fn ask_mtu(skb: &Skb, ifindex: u32) -> Option<u32> {
    // In: a length to be judged, which must not be zero. Out: the device's MTU, whatever the verdict
    // (net/core/filter.c, `bpf_skb_check_mtu`, which lets every aggregate pass).
    let mut mtu = 1;
    // SAFETY: the context is the program's own, and `mtu` lives through the call.
    let outcome = unsafe { bpf_check_mtu(skb.raw().cast(), ifindex, &raw mut mtu, 0, 0) };
    (outcome >= 0).then_some(mtu)
}
