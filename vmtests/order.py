# How many packets are overtaken where a flow changes paths, by veth and by netkit, on hosts of two processors: a sender
# that changes its processor all the time, and a lease of one second. At most a burst of packets a lease and direction.
import json

SECONDS = 20
# Prints packets received, and those that came after a later one.
RECEIVER = r"""
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
server.bind(("", 7000))
came, late, last = 0, 0, -1
while True:
    data, peer = server.recvfrom(2000)
    if data == b"done":
        server.sendto(f"{came} {late}".encode(), peer)
        came, late, last = 0, 0, -1
        continue
    number = int(data[:12])
    came += 1
    late += number < last
    last = max(last, number)
    if number % 20 == 0:
        server.sendto(data[:12], peer)
"""
SENDER = rf"""
import os, select, socket, time
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect(("10.42.2.2", 7000))
end, number = time.monotonic() + {SECONDS}, 0
while time.monotonic() < end:
    os.sched_setaffinity(0, {{number // 10 % 2}})
    for _ in range(10):
        client.send(b"%012d" % number + b"." * 200)
        number += 1
    # Never more on the way than a few dozen: nothing is to be lost.
    while select.select([client], [], [], 0)[0]:
        client.recv(100)
    if number % 20 == 0:
        select.select([client], [], [], 0.1)
client.settimeout(2)
for _ in range(10):
    client.send(b"done")
    try:
        while len(answer := client.recv(100)) == 12 and answer.isdigit():
            pass
        break
    except TimeoutError:
        pass
print(number, answer.decode())
"""


def counts(host):
    counters = json.loads(host.succeed("oncache stats --json"))["counters"]
    return {(c["program"], c["reason"]): c["packets"] for c in counters}


start_all()
for host in (alpha, beta):
    host.wait_for_unit("oncache.service")
    host.succeed("test $(nproc) = 2")
beta.succeed(f"cat >/tmp/receiver.py <<'EOF'\n{RECEIVER}\nEOF")
alpha.succeed(f"cat >/tmp/sender.py <<'EOF'\n{SENDER}\nEOF")

for device in ("veth", "netkit"):
    with subtest(device):
        for host in (alpha, beta):
            host.execute("oncache container del web")
            host.succeed(
                "sed '/^lease = /d; s/^enabled = .*/&\\nlease = \"1s\"/; /^.container/,$d' "
                "/etc/oncache/config.toml >/tmp/config.toml",
                f"printf '[container]\\ndevice = \"{device}\"\\n' >>/tmp/config.toml",
                "cp --remove-destination /tmp/config.toml /etc/oncache/config.toml",
                "systemctl reload oncache",
            )
            host.wait_until_succeeds("oncache container add web --ip $(oncache status --json | "
                                     "python3 -c 'import json, sys; print(json.load(sys.stdin)[\"subnet\"][:-4] + \"2\")')", timeout=60)
            kind = json.loads(host.succeed("ip -j -d link show onc-web"))[0]["linkinfo"]["info_kind"]
            assert kind == device, kind
        beta.succeed("ip netns exec web python3 /tmp/receiver.py >/dev/null 2>&1 & echo $! >/tmp/receiver")
        beta.wait_until_succeeds("ip netns exec web ss -Hlun sport = 7000 | grep -q 7000", timeout=60)
        before = counts(alpha)
        sent, came, late = map(int, alpha.succeed("ip netns exec web python3 /tmp/sender.py", timeout=120).split())
        after = counts(alpha)
        missed = {key[1]: after[key] - before.get(key, 0) for key in after if key[0] == "egress" and key[1] != "hit"}
        renewed = missed.get("lease-expired", 0)
        print(f"{device}: {sent} sent, {came} received, {late} after a later one; at alpha {renewed} packets by the slow path "
              f"for a lease of 1 s in {SECONDS} s, {after['egress', 'hit'] - before.get(('egress', 'hit'), 0)} fast")
        assert renewed > 0 and came > 100, (renewed, came)
        # A lease and direction: what the slow path had of the flow at that moment may be overtaken, and no more.
        assert late <= sum(missed.values()) * 2, (late, missed)
        beta.succeed("kill $(cat /tmp/receiver)")
