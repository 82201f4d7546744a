# Two hosts with the unit as it is delivered: containers talk, and established flows take the fast path, as
# the counters say and as a capture on the bridge proves, where fast packets do not come by.
import json

ROUNDS = 4000

start_all()

with subtest("the daemon says that it is ready, on both"):
    for host in (alpha, beta):
        host.wait_for_unit("oncache.service")
        host.succeed("oncache check")

with subtest("a container on each"):
    alpha.succeed("oncache container add web")
    beta.succeed("oncache container add web")
    for host in (alpha, beta):
        config = host.succeed("cat /etc/oncache/config.toml")
        kind = json.loads(host.succeed("ip -j -d link show onc-web"))[0]["linkinfo"]["info_kind"]
        print(f"{host.name}: a container on {kind}")
        assert kind == ("netkit" if 'device = "netkit"' in config else "veth"), kind

with subtest("a first packet, by the slow path"):
    alpha.succeed("ip netns exec web ping -c 1 -W 10 10.42.2.2")

with subtest("a stream between them"):
    beta.succeed("ip netns exec web iperf3 --server --daemon")
    # The bridge is on the slow path only: what it sees of the stream's data has not been fast.
    capture = "tcpdump --immediate-mode -nni oncache0 -w /tmp/bridge.pcap 'tcp port 5201'"
    for host in (alpha, beta):
        host.succeed(f"{capture} >/dev/null 2>&1 & echo $! >/tmp/tcpdump")
        host.wait_for_file("/tmp/bridge.pcap")
    report = json.loads(alpha.succeed("ip netns exec web iperf3 --client 10.42.2.2 --bytes 256M --json"))
    moved = report["end"]["sum_received"]["bytes"]
    # The server counts until the client says that it is done, not until all is there.
    assert moved > 128 << 20, f"only {moved} bytes arrived"
    print(f"stream: {moved} bytes, {report['end']['sum_received']['bits_per_second'] / 1e6:.0f} Mbit/s")

with subtest("it was carried by the fast path"):
    for host in (alpha, beta):
        host.succeed("sleep 1; kill $(cat /tmp/tcpdump); sleep 1")
        seen = int(host.succeed("tcpdump -nnr /tmp/bridge.pcap 2>/dev/null | wc -l"))
        stats = json.loads(host.succeed("oncache stats --json"))
        hits = {c["program"]: c["packets"] for c in stats["counters"] if c["reason"] == "hit"}
        ratio = stats["hit_ratio"]
        print(f"{host.name}: hits {hits}, hit ratio {ratio}, {seen} packets of it on the bridge")
        fast = hits["egress"] + hits["ingress"]
        assert fast > 20 * seen, f"{host.name}: {fast} fast packets, but {seen} seen on the bridge"
        assert min(ratio["egress"], ratio["ingress"]) > 0.9, f"{host.name}: hit ratio {ratio}"

with subtest("no packet is lost"):
    beta.succeed("ip netns exec web udp-rounds answer >/dev/null 2>&1 &")
    beta.wait_until_succeeds("ip netns exec web ss -Hlun 'sport = :7000' | grep 7000", timeout=30)
    came = int(alpha.succeed(f"ip netns exec web udp-rounds ask 10.42.2.2 {ROUNDS}"))
    print(f"{came} of {ROUNDS} round trips")
    assert came == ROUNDS, f"{ROUNDS - came} of {ROUNDS} round trips lost"
