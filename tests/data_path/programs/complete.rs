//! The tables leave no reason out.

use std::collections::BTreeSet;

use oncache_abi::reason::{
    Program,
    Reason::{self, *},
};

use super::{case::Case, egress, egress_init, ingress, ingress_init};

/// What each program can say, from its source.
const GIVEN: [(Program, &[Reason]); 4] = [
    (
        Program::Egress,
        &[
            Hit,
            NotIpv4,
            Truncated,
            BadHeader,
            IpOptions,
            Fragment,
            TtlExpires,
            OtherProtocol,
            TcpState,
            SynAck,
            Closing,
            OverMtu,
            OverUnderlay,
            OutsideNetwork,
            NotGateway,
            SourceMismatch,
            NoContainer,
            Withheld,
            ContainerUnlearned,
            NoFlow,
            OneWay,
            StaleEpoch,
            LeaseExpired,
            NoHost,
            HostUnlearned,
            HelperFailed,
        ],
    ),
    (
        Program::EgressInit,
        &[
            Learned,
            NotIpv4,
            NotOverlay,
            Truncated,
            BadHeader,
            IpOptions,
            Fragment,
            OtherProtocol,
            OutsideNetwork,
            NoContainer,
            Withheld,
            OuterChecksum,
            OtherVni,
            NotPeer,
            NotEstablished,
            StaleMark,
            Crowded,
            HelperFailed,
        ],
    ),
    (
        Program::Ingress,
        &[
            Hit,
            NotIpv4,
            NotOverlay,
            Truncated,
            BadHeader,
            IpOptions,
            Fragment,
            TtlExpires,
            OtherProtocol,
            TcpState,
            SynAck,
            Closing,
            OverMtu,
            UdpAggregate,
            NoContainer,
            Withheld,
            ContainerUnlearned,
            NoFlow,
            OneWay,
            StaleEpoch,
            LeaseExpired,
            NoHost,
            WrongHost,
            OuterChecksum,
            OuterCongestion,
            OtherVni,
            NotPeer,
            NotVtep,
            HelperFailed,
        ],
    ),
    (
        Program::IngressInit,
        &[
            Learned,
            NotIpv4,
            Truncated,
            BadHeader,
            IpOptions,
            Fragment,
            OtherProtocol,
            NotGateway,
            SourceMismatch,
            NoContainer,
            Withheld,
            NotEstablished,
            StaleMark,
            Crowded,
            HelperFailed,
        ],
    ),
];

/// What no packet can bring about. The helpers of the learning programs are lookups and updates of
/// maps: an update fails only where the kernel has no memory for it, or meets itself on the same
/// bucket (kernel/bpf/hashtab.c, `htab_lock_bucket`).
const OUT_OF_REACH: [(Program, Reason); 2] = [
    (Program::EgressInit, HelperFailed),
    (Program::IngressInit, HelperFailed),
];

/// What one packet alone does not bring about for sure: see `crowded.rs`.
const BY_CHANCE: [(Program, Reason); 2] = [
    (Program::EgressInit, Crowded),
    (Program::IngressInit, Crowded),
];

/// A packet that may be learned from is one that only the caches were missing for.
const MISSES: &[Reason] = &[
    ContainerUnlearned,
    NoFlow,
    OneWay,
    StaleEpoch,
    LeaseExpired,
    NoHost,
    HostUnlearned,
    WrongHost,
    SynAck,
];

fn all_cases() -> Vec<Case> {
    let all = [
        egress::cases(),
        egress_init::cases(),
        ingress::cases(),
        ingress_init::cases(),
    ];
    all.into_iter().flatten().collect()
}

fn named(program: Program, reason: Reason) -> String {
    format!("{}/{}", program.name(), reason.name())
}

#[test]
fn every_reason_of_every_program_has_a_case() {
    let cases = all_cases();
    let reached: BTreeSet<String> = cases
        .iter()
        .filter_map(|case| Some(named(case.program, case.reason?)))
        .collect();
    let given: BTreeSet<String> = GIVEN
        .iter()
        .flat_map(|(program, reasons)| reasons.iter().map(|reason| (*program, *reason)))
        .filter(|pair| !OUT_OF_REACH.contains(pair) && !BY_CHANCE.contains(pair))
        .map(|(program, reason)| named(program, reason))
        .collect();
    assert_eq!(reached, given);
}

#[test]
fn every_reason_is_some_programs() {
    let given: Vec<Reason> = GIVEN
        .iter()
        .flat_map(|(_, reasons)| reasons.to_vec())
        .collect();
    for reason in Reason::ALL {
        assert!(
            given.contains(reason),
            "{} is nobody's reason",
            reason.name()
        );
    }
}

#[test]
fn exactly_the_cache_misses_mark_the_packet() {
    for case in all_cases() {
        let Some(reason) = case.reason else { continue };
        assert_eq!(case.missed, MISSES.contains(&reason), "{}", reason.name());
    }
}
