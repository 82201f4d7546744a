//! Frames that once showed a fault.

use oncache::datapath::PacketContext;

use super::{Program, program_bench::on_a_bench, target};

/// Runs a frame as the fuzzer prints it, on the program's own device, and expects it to be refused.
fn refused(program: Program, frame: &str) {
    refused_as(program, frame, 0);
}

/// The same for an aggregate with this segment size.
fn refused_as(program: Program, frame: &str, gso_size: u32) {
    let frame: Vec<u8> = (0..frame.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&frame[at..at + 2], 16).expect("a frame in hexadecimal"))
        .collect();
    let target = target(program);
    on_a_bench(|bench| {
        bench.set(&(target.world)());
        let context = PacketContext {
            gso_size,
            ..target.context()
        };
        assert_eq!(target.judge(bench, &frame, context), Ok(false));
    });
}

#[test]
fn a_packet_for_another_address_that_came_by_our_mac_address() {
    refused(
        Program::Ingress,
        "02000000000102000000000208004500005a1234000040118323c0a8320cc07c320bc35012b500460000\
         0800000000002a000a6fc0a8320b0a6fc0a8320c080045000028123440003f0612440a2a02030a2a0102\
         13889c40000001000000020050182000beef0000",
    );
}

#[test]
fn a_frame_from_our_own_vtep() {
    refused(
        Program::Ingress,
        "02000000000102000000000208004500005a12340000401182f7c0a8320cc0a8320bc35012b500460000\
         0800000000002a000a6fc0a8320b0a6fc0a8320b080045000028123440003f0612440a2a02030a2a0102\
         13889c40000001000000020050182000beef0000",
    );
}

#[test]
fn a_segment_without_ack() {
    refused(
        Program::Egress,
        "0a620a2a01010a630a2a01020800450000281234400040061144\
         0a2a01020a2a02039c401388000001000000020050082000beef0000",
    );
    refused(
        Program::Ingress,
        "02000000000102000000000208004500005c12340000401182f5c0a8320cc0a8320bc35012b500480000\
         0800000000002a000a6fc0a8320b0a6fc0a8320c08004500002a123440003f0612420a2a02030a2a0102\
         13889c40000001000000020050002000beef00000001",
    );
}

#[test]
fn a_congested_aggregate_that_cannot_be_decapsulated_stays_as_it_was() {
    refused_as(
        Program::Ingress,
        "020000000001020000000002080045c9005a123400004011822ec0a8320cc0a8320bc35012b500460000\
         0800000000002a000a6fc0a8320b0a6fc0a8320c0800450e0028123440003f0612360a2a02030a2a0102\
         13889c40000001000000020050182000beef0000",
        500,
    );
}
