# Beside a host firewall that flushes the whole ruleset at each reload, oncache's tables included, and beside
# networkd: a running flow goes on, by the slow path for a moment and then by the fast path again; what the firewall
# stops is stopped at once; networkd takes nothing away.
import json

SERVER = r"""
import socket
listener = socket.create_server(("", 7000))
while True:
    connection, _ = listener.accept()
    while data := connection.recv(4096):
        connection.sendall(data)
"""
# Asks fifty times a second, and keeps the time of each answer.
CLIENT = r"""
import socket, time
connection = socket.create_connection(("10.42.2.2", 7000), 10)
connection.settimeout(None)
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while True:
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    print(time.monotonic(), flush=True)
    time.sleep(0.02)
"""
FIREWALL = """
flush ruleset
table inet firewall {
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iifname lo accept
        ip protocol icmp accept
        udp dport 4789 accept
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
        %s
        iifname oncache0 oifname oncache-vx0 accept
        iifname oncache-vx0 oifname oncache0 accept
    }
}
"""
RELOADS = 10


def hits():
    counters = json.loads(alpha.succeed("oncache stats --json"))["counters"]
    return sum(c["packets"] for c in counters if c["reason"] == "hit" and c["program"] == "egress")


def answers():
    return [float(line) for line in alpha.succeed("cat /tmp/answers").split()]


def until_fast():
    before = hits()
    retry(lambda _: hits() > before + 20, 60)


start_all()
for host in (alpha, beta):
    host.wait_for_unit("oncache.service")
    host.succeed("oncache container add web")
beta.succeed(f"cat >/tmp/server.py <<'EOF'\n{SERVER}\nEOF")
beta.succeed("ip netns exec web python3 /tmp/server.py >/dev/null 2>&1 &")
alpha.succeed(f"cat >/tmp/client.py <<'EOF'\n{CLIENT}\nEOF")
for name, rule in (("open", ""), ("shut", "tcp dport 7000 drop")):
    alpha.succeed(f"cat >/tmp/{name}.nft <<'EOF'\n{FIREWALL % rule}\nEOF")
beta.wait_until_succeeds("ip netns exec web ss -Hltn sport = 7000 | grep -q 7000", timeout=60)
alpha.succeed("ip netns exec web python3 /tmp/client.py >/tmp/answers 2>/dev/null &")
alpha.wait_until_succeeds("test $(wc -l </tmp/answers) -gt 20", timeout=60)
until_fast()

with subtest("the firewall is reloaded, and the flow goes on"):
    begun = answers()[-1]
    for _ in range(RELOADS):
        alpha.succeed("nft -f /tmp/open.nft; sleep 1")
    alpha.wait_until_succeeds("nft list table inet oncache && nft list table bridge oncache", timeout=60)
    until_fast()
    times = [time for time in answers() if time >= begun]
    pause = max(later - former for former, later in zip(times, times[1:]))
    print(f"{RELOADS} reloads: {len(times)} answers, longest pause {pause:.3f} s, fast again")

with subtest("what it stops is stopped, on the fast path too"):
    alpha.succeed("nft -f /tmp/shut.nft")
    before = len(answers())
    alpha.succeed("sleep 3")
    after = len(answers())
    print(f"answers when the rules were in force: {before}, three seconds later: {after}")
    assert after <= before + 1, (before, after)

with subtest("opened again, it goes on"):
    alpha.succeed("nft -f /tmp/open.nft")
    alpha.wait_until_succeeds(f"test $(wc -l </tmp/answers) -gt {after + 50}", timeout=120)
    until_fast()

with subtest("networkd is restarted and takes nothing away"):
    before = alpha.succeed("ip route show proto 79; ip -4 -o address show oncache0")
    assert before.strip(), "there are no routes to lose"
    alpha.execute("systemctl restart systemd-networkd")
    alpha.succeed("sleep 3")
    assert alpha.succeed("ip route show proto 79; ip -4 -o address show oncache0") == before
    count = len(answers())
    alpha.wait_until_succeeds(f"test $(wc -l </tmp/answers) -gt {count + 50}", timeout=60)
    until_fast()
