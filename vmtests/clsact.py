# A kernel without tcx links (6.1): the same fast path by filters of clsact, and nothing of it left after
# `oncache down`.
import json

# Answers each datagram; asks in bursts, and prints how many answers came.
ECHO = r"""
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 7000))
while True:
    server.sendto(*server.recvfrom(2000))
"""
BURSTS, BURST = 125, 16
COUNT = f"""
import socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect((sys.argv[1], 7000))
client.settimeout(3)
came = set()
for burst in range({BURSTS}):
    for i in range({BURST}):
        client.send(b"%d.%d" % (burst, i) + b"." * 1000)
    try:
        for i in range({BURST}):
            came.add(client.recv(2000))
    except TimeoutError:
        pass
print(len(came))
"""

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
    beta.succeed(
        f"cat >/tmp/echo.py <<'EOF'\n{ECHO}\nEOF", "ip netns exec web python3 /tmp/echo.py >/dev/null 2>&1 &"
    )
    beta.wait_until_succeeds("ip netns exec web ss -Hlun sport = :7000 | grep 7000", timeout=60)
    alpha.succeed(f"cat >/tmp/count.py <<'EOF'\n{COUNT}\nEOF")
    came = int(alpha.succeed("ip netns exec web python3 /tmp/count.py 10.42.2.2"))
    print(f"{came} of {BURSTS * BURST} round trips")
    assert came == BURSTS * BURST, f"{BURSTS * BURST - came} of {BURSTS * BURST} round trips lost"

with subtest("down takes the filters off"):
    alpha.succeed("oncache down")
    for direction in ("ingress", "egress"):
        alpha.fail(f"tc filter show dev eth1 {direction} | grep .")
    alpha.fail("tc qdisc show dev eth1 | grep clsact")
