# The underlay device gets another MTU, which is followed without a reload, and a host gets another address, which
# its peers are told of by a reload. The fast path is back after each.
import json

SERVER = r"""
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 7000))
while True:
    server.sendto(*server.recvfrom(2000))
"""
CLIENT = r"""
import socket
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect(("10.42.2.2", 7000))
client.settimeout(3)
came = 0
for i in range(200):
    client.send(b"%d" % i)
    try:
        came += client.recv(2000) == b"%d" % i
    except OSError:
        pass
print(came)
"""


def hits():
    counters = json.loads(alpha.succeed("oncache stats --json"))["counters"]
    return sum(c["packets"] for c in counters if c["reason"] == "hit" and c["program"] == "egress")


def expect_fast(what):
    alpha.wait_until_succeeds("ip netns exec web ping -c 1 -W 2 10.42.2.2", timeout=60)
    # The first exchanges are what is learned from.
    alpha.succeed("ip netns exec web python3 /tmp/client.py")
    before = hits()
    came = int(alpha.succeed("ip netns exec web python3 /tmp/client.py"))
    carried = hits() - before
    print(f"{what}: {came} of 200 answered, {carried} by the fast path")
    assert came == 200 and carried > 150, (came, carried)


def expect_mtu(mtu):
    for host in (alpha, beta):
        retry(lambda _: json.loads(host.succeed("oncache status --json"))["mtu"] == mtu, 60)
        host.wait_until_succeeds(f"ip netns exec web ip link show eth0 | grep -q 'mtu {mtu} '", timeout=60)
    # What just fits arrives, and one byte more does not go.
    alpha.succeed(f"ip netns exec web ping -c 2 -W 3 -M do -s {mtu - 28} 10.42.2.2")
    alpha.fail(f"ip netns exec web ping -c 1 -W 3 -M do -s {mtu - 27} 10.42.2.2")


start_all()
for host in (alpha, beta):
    host.wait_for_unit("oncache.service")
    host.succeed("oncache container add web")
beta.succeed(f"cat >/tmp/server.py <<'EOF'\n{SERVER}\nEOF")
alpha.succeed(f"cat >/tmp/client.py <<'EOF'\n{CLIENT}\nEOF")
beta.succeed("ip netns exec web python3 /tmp/server.py >/dev/null 2>&1 &")
expect_fast("before")

for mtu in (1400, 1500):
    with subtest(f"the underlay's MTU is {mtu} now"):
        for host in (alpha, beta):
            host.succeed(f"ip link set eth1 mtu {mtu}")
        expect_mtu(mtu - 50)
        expect_fast(f"underlay MTU {mtu}")

with subtest("alpha has another address"):
    alpha.succeed("ip address add 192.168.50.21/24 dev eth1")
    # The file is a link into the store on NixOS, and is replaced by one of our own.
    for host in (alpha, beta):
        host.succeed(
            "sed 's/192\\.168\\.50\\.11/192.168.50.21/' /etc/oncache/config.toml >/tmp/config.toml",
            "cp --remove-destination /tmp/config.toml /etc/oncache/config.toml",
            "systemctl reload oncache",
        )
    alpha.succeed("ip address del 192.168.50.11/24 dev eth1")
    expect_fast("by the new address")
    assert json.loads(alpha.succeed("oncache status --json"))["address"] == "192.168.50.21"
    hosts = json.loads(beta.succeed("oncache cache list peers --json"))
    print(hosts)
    assert "192.168.50.11" not in json.dumps(hosts), "beta has kept the old address"
