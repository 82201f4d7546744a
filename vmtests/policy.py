# Network policy where the kernel tracks connections over a bridge (nf_conntrack_bridge): between hosts, and between
# containers of one host. A flow that is denied stops, on the fast path too, and goes on when it is allowed again.
import json
import shlex

# Answers on every port that it is given.
SERVER = r"""
import selectors, socket, sys
ready = selectors.DefaultSelector()
for port in map(int, sys.argv[1:]):
    listener = socket.create_server(("", port))
    ready.register(listener, selectors.EVENT_READ, True)
while True:
    for key, _ in ready.select():
        if key.data:
            ready.register(key.fileobj.accept()[0], selectors.EVENT_READ, False)
            continue
        try:
            data = key.fileobj.recv(4096)
            if data:
                key.fileobj.sendall(data)
                continue
        except OSError:
            pass
        ready.unregister(key.fileobj)
        key.fileobj.close()
"""
# Asks ten times a second, and keeps a line for each answer.
CLIENT = r"""
import socket, sys, time
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
connection.settimeout(None)
while True:
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    print("answered", flush=True)
    time.sleep(0.1)
"""
RULES = """
[[policy]]
action = "deny"
from = "web"
to = "db"
protocol = "tcp"
ports = [5432]

[[policy]]
action = "deny"
from = "web"
to = "10.42.2.0/24"
protocol = "tcp"
ports = [5432]
"""
NEIGHBOUR, REMOTE = "10.42.1.3", "10.42.2.2"


def connect(address, port):
    probe = f"import socket; socket.create_connection(({address!r}, {port}), 3)"
    return f"ip netns exec web python3 -c {shlex.quote(probe)}"


def answers(name):
    return int(alpha.succeed(f"wc -l </tmp/{name}"))


def hits():
    counters = json.loads(alpha.succeed("oncache stats --json"))["counters"]
    return sum(c["packets"] for c in counters if c["reason"] == "hit" and c["program"] == "egress")


start_all()
for host in (alpha, beta):
    host.wait_for_unit("oncache.service")
    host.succeed("oncache container add web")
    host.succeed(f"cat >/tmp/server.py <<'EOF'\n{SERVER}\nEOF")
alpha.succeed("oncache container add db")
alpha.succeed(f"cat >/tmp/client.py <<'EOF'\n{CLIENT}\nEOF")
alpha.succeed(f"cat >/tmp/rules.toml <<'EOF'\n{RULES}\nEOF")
alpha.succeed("ip netns exec db python3 /tmp/server.py 5432 5433 >/dev/null 2>&1 &")
beta.succeed("ip netns exec web python3 /tmp/server.py 5432 5433 >/dev/null 2>&1 &")

with subtest("without rules everything is allowed"):
    for address in (NEIGHBOUR, REMOTE):
        for port in (5432, 5433):
            alpha.wait_until_succeeds(connect(address, port), timeout=60)
    for name, address in (("neighbour", NEIGHBOUR), ("remote", REMOTE)):
        alpha.succeed(f"ip netns exec web python3 /tmp/client.py {address} 5432 >/tmp/{name} 2>/dev/null &")
        alpha.wait_until_succeeds(f"test $(wc -l </tmp/{name}) -gt 20", timeout=60)
    assert hits() > 0, "nothing went by the fast path"

with subtest("what a rule denies stops, and nothing else"):
    print(alpha.succeed("oncache policy apply /tmp/rules.toml"))
    alpha.succeed("nft list table bridge oncache-policy | grep -q 'ct direction'")
    before = {name: answers(name) for name in ("neighbour", "remote")}
    alpha.succeed("sleep 3")
    after = {name: answers(name) for name in before}
    print(f"answers when the rules were in force: {before}, three seconds later: {after}")
    # One answer may have been on its way to the file.
    assert all(after[name] <= before[name] + 1 for name in before), (before, after)
    for address in (NEIGHBOUR, REMOTE):
        alpha.fail(connect(address, 5432))
        alpha.succeed(connect(address, 5433))
    listed = json.loads(alpha.succeed("oncache policy list --json"))
    print(listed)
    assert all(rule["packets"] > 0 for rule in listed["rules"]), listed

with subtest("rules outlive the daemon"):
    alpha.succeed("systemctl kill --signal=KILL oncache.service")
    alpha.fail(connect(NEIGHBOUR, 5432))
    alpha.fail(connect(REMOTE, 5432))
    alpha.wait_for_unit("oncache.service")
    alpha.fail(connect(REMOTE, 5432))

with subtest("allowed again, both go on, the remote one by the fast path"):
    alpha.wait_until_succeeds("oncache policy clear", timeout=30)
    stopped = {name: answers(name) for name in ("neighbour", "remote")}
    for name, count in stopped.items():
        alpha.wait_until_succeeds(f"test $(wc -l </tmp/{name}) -gt {count + 20}", timeout=120)
    carried = hits()
    alpha.succeed("sleep 2")
    assert hits() > carried, "the flow has not come back to the fast path"
    alpha.succeed(connect(NEIGHBOUR, 5432), connect(REMOTE, 5432))
