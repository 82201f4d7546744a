# A host is rebooted in order. By itself it comes back with overlay, programs and run-time rules, and with the container
# that has a unit, at the address that was asked for; what was added by hand is gone, is said to be, and gets its address
# again when it is added again. What the peer had established does not lead astray, and flows are fast again. And a
# container's unit is not lost if the underlay comes after the daemon.
import json
import shlex
import time

# Says its name, on TCP and UDP.
SERVER = r"""
import selectors, socket, sys
name = sys.argv[1].encode()
ready = selectors.DefaultSelector()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("", 7000))
ready.register(datagrams, selectors.EVENT_READ, "datagrams")
for port in (7000, 7001):
    ready.register(socket.create_server(("", port)), selectors.EVENT_READ, "listener")
while True:
    for key, _ in ready.select():
        if key.data == "datagrams":
            datagrams.sendto(name, datagrams.recvfrom(64)[1])
        elif key.data == "listener":
            ready.register(key.fileobj.accept()[0], selectors.EVENT_READ, "connection")
        else:
            try:
                if key.fileobj.recv(64):
                    key.fileobj.sendall(name)
                    continue
            except OSError:
                pass
            ready.unregister(key.fileobj)
            key.fileobj.close()
"""
# Ten times a second, for ever, without opening anything anew: a line for each answer, and how it ended.
CLIENT = r"""
import select, socket, sys, time
kind, address = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM, (sys.argv[2], 7000)
peer = socket.socket(socket.AF_INET, kind)
peer.connect(address)
while True:
    try:
        peer.send(b"x")
        if select.select([peer], [], [], 1)[0]:
            print(peer.recv(64).decode() or "ended", flush=True)
    except ConnectionRefusedError:
        pass
    except OSError as error:
        print(f"ended: {error}", flush=True)
        break
    time.sleep(0.1)
"""
WEB, HAND = "10.42.1.10", "10.42.1.20"
RULES = f"""
[[policy]]
action = "deny"
from = "10.42.2.0/24"
to = "web"
protocol = "tcp"
ports = [7001]
"""


def hits(host):
    counters = json.loads(host.succeed("oncache stats --json"))["counters"]
    return sum(c["packets"] for c in counters if c["reason"] == "hit")


def connect(port):
    probe = f"import socket; socket.create_connection(({WEB!r}, {port}), 3)"
    return f"ip netns exec web python3 -c {shlex.quote(probe)}"


def serve(name):
    """As a service of its own in the container, as the manual has it."""
    alpha.succeed(
        f"systemd-run --unit=server-{name} --property=NetworkNamespacePath=/run/netns/{name} "
        f"$(command -v python3) /root/server.py {name}"
    )
    alpha.wait_until_succeeds(f"ip netns exec {name} ss -Hltn sport = 7001 | grep -q 7001", timeout=60)


def ask(kind, address, file):
    beta.succeed(f"ip netns exec web python3 /root/client.py {kind} {address} >/root/{file} 2>&1 &")


def answers(file, name):
    return int(beta.succeed(f"grep -cx {name} /root/{file} || true"))


def containers():
    return {c["name"]: c["ip"] for c in json.loads(alpha.succeed("oncache container list --json"))}


def until_fast(file, name):
    before = answers(file, name), hits(alpha), hits(beta)
    retry(lambda _: hits(alpha) > before[1] + 20 and hits(beta) > before[2] + 20, 90)
    print(f"{name}: {answers(file, name) - before[0]} answers, {hits(alpha) - before[1]} packets by the fast path of alpha")
    assert answers(file, name) > before[0], f"fast, but not the answers of {name}"


start_all()
for host in (alpha, beta):
    host.wait_for_unit("oncache.service")
alpha.wait_for_unit("oncache-container-web.service")
beta.succeed("oncache container add web", f"cat >/root/client.py <<'EOF'\n{CLIENT}\nEOF")
alpha.succeed(
    f"oncache container add hand --ip {HAND}",
    f"cat >/root/server.py <<'EOF'\n{SERVER}\nEOF",
    f"cat >/root/rules.toml <<'EOF'\n{RULES}\nEOF",
    "oncache policy apply /root/rules.toml",
)

with subtest("before"):
    assert containers() == {"web": WEB, "hand": HAND}, containers()
    for name in ("web", "hand"):
        serve(name)
    ask("tcp", WEB, "stream")
    ask("udp", HAND, "datagrams")
    until_fast("stream", "web")
    until_fast("datagrams", "hand")
    beta.fail(connect(7001))

with subtest("alpha is rebooted, and comes back by itself"):
    begun = time.monotonic()
    alpha.shutdown()
    down = time.monotonic() - begun
    alpha.start()
    alpha.wait_for_unit("oncache.service")
    alpha.wait_for_unit("oncache-container-web.service")
    print(f"down after {down:.0f} s, up after {time.monotonic() - begun:.0f} s; containers: {containers()}")
    assert down < 90, "a unit holds up the shutdown"
    assert containers() == {"web": WEB}, containers()
    said = alpha.succeed("journalctl --boot --unit oncache --output cat --no-pager | grep 'container hand'")
    print(said)
    assert said.count("gone with the host's last boot") == 1, said
    assert json.loads(alpha.succeed("oncache status --json"))["cache"], "no fast path"

with subtest("the rules are in force, for what is allowed and what is not"):
    serve("web")
    beta.wait_until_succeeds(connect(7000), timeout=60)
    beta.fail(connect(7001))
    rules = json.loads(alpha.succeed("oncache policy list --json"))["rules"]
    print(rules)
    assert len(rules) == 1 and rules[0]["packets"] > 0, rules

with subtest("what beta had established does not lead astray"):
    # The connection is told that its other end is gone; the datagrams, which are still sent, reach nobody.
    beta.wait_until_succeeds("grep -q ^ended /root/stream", timeout=60)
    print("the connection: " + beta.succeed("tail -1 /root/stream").strip())
    captured = alpha.succeed(
        f"ip netns exec web timeout --signal=INT 4 tcpdump --immediate-mode -nni eth0 ip host {HAND} 2>&1 || true"
    )
    assert "\n0 packets captured" in captured, captured

with subtest("added again, at its address, for the flow that has never ceased"):
    alpha.succeed("oncache container add other")
    alpha.succeed(f"oncache container add hand --ip {HAND}")
    here = containers()
    print(here)
    assert here["web"] == WEB and here["hand"] == HAND and here["other"] not in (WEB, HAND), here
    serve("hand")
    until_fast("datagrams", "hand")
    ask("tcp", WEB, "stream")
    until_fast("stream", "web")

with subtest("the underlay comes after the daemon"):
    # An address that was chosen once is kept as long as the host is up, unless all is taken back.
    alpha.succeed("systemctl stop server-web oncache-container-web oncache", "oncache down")
    alpha.succeed("ip address del 192.168.50.11/24 dev eth1")
    alpha.succeed("systemctl start --no-block oncache oncache-container-web")
    alpha.wait_until_succeeds("test $(systemctl show -P NRestarts oncache-container-web) -gt 0", timeout=90)
    alpha.succeed("journalctl --boot --unit oncache --lines 3 --output cat --no-pager >&2")
    alpha.succeed("ip address add 192.168.50.11/24 dev eth1")
    alpha.wait_until_succeeds("systemctl is-active oncache oncache-container-web", timeout=120)
    assert containers()["web"] == WEB, containers()
    serve("web")
    beta.wait_until_succeeds(connect(7000), timeout=60)
