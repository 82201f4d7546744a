//! Captures see all that passes, and what it is.

use std::{thread, time::Duration};

use crate::by_hand::NO_DAEMON;
use oncache_testbed::{Capture, Frame, Lab, TcpFlags, traffic, traffic::ping};

fn icmp(frame: &Frame) -> bool {
    frame.ipv4().is_some_and(|packet| packet.protocol() == 1)
}

#[test]
fn a_capture_sees_exactly_the_packets() {
    let lab = Lab::two_hosts(NO_DAEMON);
    let both = [lab.alpha(), lab.beta()];
    let captures = both.map(|host| Capture::on(host, "eth1").filter(icmp).start());
    let report = ping(&lab.alpha().as_container(), lab.beta().address(), 20);
    assert!(report.lossless(), "{report}");
    let [alpha, beta] = captures.map(oncache_testbed::RunningCapture::stop);
    for (recording, name) in [(&alpha, "alpha"), (&beta, "beta")] {
        assert_eq!((recording.frames.len(), recording.lost), (40, 0), "{name}");
        assert_eq!(
            recording
                .frames
                .iter()
                .filter(|frame| frame.outgoing)
                .count(),
            20,
            "{name}"
        );
        assert!(
            recording.frames.is_sorted_by_key(|frame| frame.at),
            "{name}"
        );
        for frame in &recording.frames {
            let packet = frame
                .view()
                .ipv4()
                .expect("the filter lets IPv4 through only");
            let from_here = packet.source().to_string().ends_with(".11") == (name == "alpha");
            assert_eq!(frame.outgoing, from_here, "{name}");
            assert_eq!(
                (packet.ttl(), packet.total_length(), frame.length),
                (64, 84, 98)
            );
            assert!(packet.checksum_ok());
        }
    }
    let bytes = |recording: &oncache_testbed::Recording| -> Vec<_> {
        recording
            .frames
            .iter()
            .map(|frame| frame.bytes.clone())
            .collect()
    };
    assert_eq!(bytes(&alpha), bytes(&beta), "both ends of a wire");
}

#[test]
fn what_is_taken_while_a_recording_goes_on_is_not_in_its_rest() {
    let lab = Lab::two_hosts(NO_DAEMON);
    let alpha = lab.alpha().as_container();
    let capture = Capture::on(lab.alpha(), "eth1").filter(icmp).start();
    assert!(ping(&alpha, lab.beta().address(), 2).lossless());
    assert!(capture.wait_kept(4, Duration::from_secs(5)));
    assert_eq!(capture.take().len(), 4);
    assert!(capture.take().is_empty());
    assert!(ping(&alpha, lab.beta().address(), 3).lossless());
    assert!(capture.wait_kept(10, Duration::from_secs(5)));
    assert_eq!(capture.stop().frames.len(), 6);
}

#[test]
fn no_packet_before_the_start_or_after_the_stop_or_of_another_device() {
    let lab = Lab::two_hosts(NO_DAEMON);
    let alpha = lab.alpha().as_container();
    assert!(ping(&alpha, lab.beta().address(), 3).lossless());
    let lo = Capture::on(lab.alpha(), "lo").start();
    let eth1 = Capture::on(lab.alpha(), "eth1").filter(icmp).start();
    assert!(ping(&alpha, lab.beta().address(), 2).lossless());
    assert!(eth1.wait_kept(4, Duration::from_secs(5)));
    let eth1 = eth1.stop();
    assert!(ping(&alpha, lab.beta().address(), 3).lossless());
    assert_eq!((eth1.frames.len(), lo.stop().seen), (4, 0));
}

#[test]
fn tcp_is_understood_and_large_frames_say_how_they_are_cut() {
    let (_lab, client, server) = crate::by_hand::two_containers();
    let capture = Capture::on(&client, "eth0").snap(128).start();
    let bytes = 64 << 20;
    let report = traffic::transfer(&client, &server, 5000, bytes, traffic::Direction::Forward);
    assert!(report.intact(), "{report}");
    thread::sleep(Duration::from_millis(50));
    let recording = capture.stop();
    assert_eq!(recording.lost, 0, "{} seen", recording.seen);
    let mut carried = 0;
    for frame in recording.frames.iter().filter(|frame| frame.outgoing) {
        assert!(frame.bytes.len() <= 128 && frame.bytes.len() <= frame.length);
        let view = frame.view();
        let Some(tcp) = view.tcp() else { continue };
        assert_eq!(tcp.destination_port(), 5000);
        carried += tcp.payload_length() as u64;
        if frame.segment_size != 0 {
            assert!(frame.length > 1514 && frame.segment_size <= 1460 && frame.checksum_pending);
        }
    }
    assert!(carried >= bytes, "{carried} of {bytes} bytes were seen");
    let flags = |which| {
        let tcp = recording
            .frames
            .iter()
            .filter_map(|frame| frame.view().tcp());
        tcp.filter(|tcp| tcp.flags().any(which)).count()
    };
    assert_eq!((flags(TcpFlags::SYN), flags(TcpFlags::RST)), (2, 0));
    assert_eq!(flags(TcpFlags::FIN), 2);
}

#[test]
fn the_inside_of_vxlan_is_seen() {
    let lab = Lab::two_hosts(NO_DAEMON);
    for (host, other, number) in [(lab.alpha(), lab.beta(), 1), (lab.beta(), lab.alpha(), 2)] {
        let remote = other.address();
        host.sh(&format!(
            "ip link add vx type vxlan id 77 dstport 4789 noudpcsum remote {remote} dev eth1
             ip address add 10.9.0.{number}/24 dev vx
             ip link set vx up"
        ));
    }
    let capture = Capture::on(lab.beta(), "eth1")
        .filter(|frame| frame.vxlan().is_some_and(|outer| icmp(&outer.inner)))
        .start();
    let beta = "10.9.0.2".parse().expect("an address");
    assert!(ping(&lab.alpha().as_container(), beta, 4).lossless());
    let recording = capture.stop();
    assert_eq!((recording.frames.len(), recording.lost), (8, 0));
    for frame in &recording.frames {
        let outer = frame
            .view()
            .vxlan()
            .expect("the filter lets VXLAN through only");
        assert_eq!((outer.vni, outer.header[0]), (77, 8));
        let (inner, wire) = (
            outer.inner.ipv4().expect("ICMP"),
            frame.view().ipv4().expect("UDP"),
        );
        assert_eq!(inner.destination() == beta, !frame.outgoing);
        assert_eq!(wire.total_length(), inner.total_length() + 50);
        assert_eq!(
            wire.transport_checksum_ok(),
            None,
            "VXLAN has no UDP checksum"
        );
    }
}

#[test]
fn what_the_kernel_had_to_drop_is_counted() {
    let (_lab, client, server) = crate::by_hand::two_containers();
    let slow = Capture::on(&client, "eth0").buffer(4096).filter(|_| {
        thread::sleep(Duration::from_micros(200));
        true
    });
    let (slow, whole) = (slow.start(), Capture::on(&client, "eth0").start());
    let report = traffic::Datagrams::new(2000, 100).run(&client, &server, 0);
    assert_eq!(report.whole, 2000, "{report}");
    let (slow, whole) = (slow.stop(), whole.stop());
    assert!(slow.lost > 0, "{} seen", slow.seen);
    assert_eq!(whole.lost, 0);
    assert_eq!(slow.seen + slow.lost, whole.seen);
}
