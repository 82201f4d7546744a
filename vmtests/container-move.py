# A container moves to another host and keeps its address: it is reached there from both hosts, the way to it is
# learned anew, and home again it is as before.
import json
import shlex

ADDRESS = "10.42.1.10"
# Says on which host it is.
SERVER = r"""
import socket, sys
listener = socket.create_server(("", 7000))
while True:
    connection, _ = listener.accept()
    while connection.recv(4096):
        connection.sendall(sys.argv[1].encode())
"""
# Asks on one connection, many times; prints the answers without those that repeat.
CLIENT = r"""
import socket
connection = socket.create_connection(("10.42.1.10", 7000), 5)
connection.settimeout(5)
said = []
for _ in range(200):
    connection.sendall(b"x")
    answer = connection.recv(64).decode()
    if answer not in said:
        said.append(answer)
print(*said)
"""


def hits(host):
    counters = json.loads(host.succeed("oncache stats --json"))["counters"]
    return sum(c["packets"] for c in counters if c["reason"] == "hit" and c["program"] == "egress")


def serve(host):
    host.succeed(f"ip netns exec db python3 /tmp/server.py {host.name} >/dev/null 2>&1 & echo $! >/tmp/server")
    host.wait_until_succeeds("ip netns exec db ss -Hltn sport = 7000 | grep -q 7000", timeout=60)


def leave(host):
    host.succeed("kill $(cat /tmp/server); oncache container del db")


def expect(host, where, fast):
    """The containers of `host` find it at `where`."""
    host.wait_until_succeeds(f"ip netns exec web python3 /tmp/client.py | grep -qx {where}", timeout=60)
    before = hits(host)
    said = host.succeed("ip netns exec web python3 /tmp/client.py").strip()
    carried = hits(host) - before
    print(f"from {host.name}: {said} answers, {carried} packets to it by the fast path")
    assert said == where, said
    assert (carried > 100) == fast, carried


def tell(host, edit):
    """Changes the configuration; it is a link into the store on NixOS, and is replaced by a file of our own."""
    host.succeed(
        f"sed {shlex.quote(edit)} /etc/oncache/config.toml >/tmp/config.toml",
        "cp --remove-destination /tmp/config.toml /etc/oncache/config.toml",
        "oncache check",
        "systemctl reload oncache",
    )


start_all()
for host in (alpha, beta):
    host.wait_for_unit("oncache.service")
    host.succeed("oncache container add web")
    host.succeed(f"cat >/tmp/server.py <<'EOF'\n{SERVER}\nEOF", f"cat >/tmp/client.py <<'EOF'\n{CLIENT}\nEOF")

with subtest("at home"):
    alpha.succeed(f"oncache container add db --ip {ADDRESS}")
    serve(alpha)
    expect(beta, "alpha", fast=True)
    expect(alpha, "alpha", fast=False)

with subtest("moved"):
    leave(alpha)
    beta.succeed(f"oncache container add db --ip {ADDRESS}")
    serve(beta)
    tell(alpha, f'/^name = "beta"/a moved = ["{ADDRESS}"]')
    expect(alpha, "beta", fast=True)
    expect(beta, "beta", fast=False)
    alpha.fail(f"oncache container add thief --ip {ADDRESS}")

with subtest("home again"):
    leave(beta)
    tell(alpha, "/^moved = /d")
    alpha.succeed(f"oncache container add db --ip {ADDRESS}")
    serve(alpha)
    expect(beta, "alpha", fast=True)
    expect(alpha, "alpha", fast=False)
