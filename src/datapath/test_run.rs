//! Running one packet through one program, past every device (`BPF_PROG_TEST_RUN`): what the
//! programs' own tests judge them by. Nothing in the daemon uses it.

use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use oncache_abi::reason::Program;

use super::{Datapath, DatapathError};

/// What a program is told of a packet besides its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketContext {
    /// `skb->mark`.
    pub mark: u32,
    /// Device the packet is on, in the caller's network namespace. It decides whether the packet
    /// counts as addressed to this host, by its MAC address.
    pub ifindex: u32,
    /// Segment size of an aggregate, zero for a single packet.
    pub gso_size: u32,
}

/// What a program did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOutcome {
    /// The `TC_ACT_*` that it returned.
    pub action: i32,
    /// The packet's bytes afterwards.
    pub packet: Vec<u8>,
    /// The packet's mark afterwards.
    pub mark: u32,
}

/// Size of `struct __sk_buff` (include/uapi/linux/bpf.h), and where its fields are.
const CONTEXT_LEN: usize = 192;
const MARK: usize = 8;
const IFINDEX: usize = 40;
const GSO_SIZE: usize = 176;

/// More than any program adds to a packet.
const ROOM: usize = 256;

impl Datapath {
    /// Runs `packet`, from its Ethernet header on, through `program`.
    ///
    /// Maps and counters change as on a device; a redirection goes nowhere. The packet is linear,
    /// and must have an Ethernet header and fit a page with its buffer (net/bpf/test_run.c,
    /// `bpf_prog_test_run_skb`).
    ///
    /// # Errors
    ///
    /// [`DatapathError::Run`] if the kernel does not run it.
    pub fn run_once(
        &self,
        program: Program,
        packet: &[u8],
        context: PacketContext,
    ) -> Result<RunOutcome, DatapathError> {
        let name = program.name();
        let failed = |source: ProgramError| DatapathError::Run {
            program: name,
            source,
        };
        let loaded: &SchedClassifier = self
            .programs
            .program(name)
            .ok_or(DatapathError::Missing(name))?
            .try_into()
            .map_err(failed)?;
        let mut before = [0; CONTEXT_LEN];
        put(&mut before, MARK, context.mark);
        put(&mut before, IFINDEX, context.ifindex);
        put(&mut before, GSO_SIZE, context.gso_size);
        let mut after = [0; CONTEXT_LEN];
        let mut out = vec![0; packet.len() + ROOM];
        let result = loaded
            .test_run(TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut out),
                ctx_in: Some(&before),
                ctx_out: Some(&mut after),
                ..TestRunOptions::default()
            })
            .map_err(failed)?;
        out.truncate(result.data_size_out as usize);
        Ok(RunOutcome {
            action: result.return_value.cast_signed(),
            packet: out,
            mark: get(&after, MARK),
        })
    }
}

fn put(context: &mut [u8; CONTEXT_LEN], at: usize, value: u32) {
    context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

fn get(context: &[u8; CONTEXT_LEN], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&context[at..at + 4]);
    u32::from_ne_bytes(bytes)
}
