# A kernel without tcx links (6.1): the same fast path by filters of clsact, and nothing of it left after
# `oncache down`.
import json

ROUNDS = 2000

start_all()
for host in (alpha, beta):
    host.wait_for_unit("oncache.service")
    host.succeed("uname -r | grep '^6[.]1[.]'")
    host.succeed("oncache container add web")

with subtest("the programs are filters"):
    for host in (alpha, beta):
        for direction in ("ingress", "egress"):
            host.succeed(f"tc filter show dev eth1 {direction} | grep 'pref 51918 bpf'")
        status = json.loads(host.succeed("oncache status --json"))
        print(f"{host.name}: kernel {host.succeed('uname -r').strip()}, attached by {status['cache']['attach']}")

with subtest("they carry a stream"):
    beta.succeed("ip netns exec web iperf3 --server --daemon")
    report = json.loads(alpha.succeed("ip netns exec web iperf3 --client 10.42.2.2 --bytes 256M --json"))
    moved = report["end"]["sum_received"]["bytes"]
    # The server counts until the client says that it is done, not until all is there.
    assert moved > 128 << 20, moved
    for host in (alpha, beta):
        ratio = json.loads(host.succeed("oncache stats --json"))["hit_ratio"]
        print(f"{host.name}: {moved} bytes, hit ratio {ratio}")
        assert min(ratio["egress"], ratio["ingress"]) > 0.9, ratio

with subtest("and lose no packet"):
    beta.succeed("ip netns exec web udp-rounds answer >/dev/null 2>&1 &")
    beta.wait_until_succeeds("ip netns exec web ss -Hlun sport = :7000 | grep 7000", timeout=60)
    came = int(alpha.succeed(f"ip netns exec web udp-rounds ask 10.42.2.2 {ROUNDS}"))
    print(f"{came} of {ROUNDS} round trips")
    assert came == ROUNDS, f"{ROUNDS - came} of {ROUNDS} round trips lost"

with subtest("down takes the filters off"):
    alpha.succeed("oncache down")
    for direction in ("ingress", "egress"):
        alpha.fail(f"tc filter show dev eth1 {direction} | grep .")
    alpha.fail("tc qdisc show dev eth1 | grep clsact")
