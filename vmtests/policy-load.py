# Rules change under load, on the sender's host and on the receiver's in turn: of the flows that are denied, no packet
# that was sent after the call had returned arrives, in either direction; the other flows lose nothing.
import json

ROUNDS = 6
DENIED, ALLOWED = 4, 4
FLOWS = DENIED + ALLOWED
# Flow i is between port 30000 + i of alpha's container and 20000 + i of beta's; half of each kind is TCP. The client
# speaks first on each; then both send on all of them, 25 times a second, the number that /tmp/generation holds at that
# moment. It is written after a call has returned (and never empty: not truncated), so what was sent with it was sent
# later, whatever clocks say.
TRAFFIC = r"""
import collections, errno, json, os, select, signal, socket, struct, sys, time
client, flows = sys.argv[1] == "client", int(sys.argv[2])
me, peer, mine, theirs = ("10.42.1.2", "10.42.2.2", 30000, 20000) if client else ("10.42.2.2", "10.42.1.2", 20000, 30000)
generation = os.open("/tmp/generation", os.O_RDONLY)
sending, wanted = True, False
def stop(*_):
    global sending
    sending = False
def report(*_):
    global wanted
    wanted = True
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, report)

class Flow:
    def __init__(self, number):
        self.datagrams = number % 2 == 0
        self.socket, self.begun = None, client
        self.sent, self.received = collections.Counter(), collections.Counter()
        self.seen, self.twice = set(), 0
        if self.datagrams:
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.socket.bind((me, mine + number))
            self.socket.connect((peer, theirs + number))
        elif client:
            self.socket = socket.create_connection((peer, theirs + number), 20, (me, mine + number))
        else:
            self.listener = socket.create_server((me, mine + number))

    def send(self):
        now = int(os.pread(generation, 3, 0))
        if self.datagrams:
            data = struct.pack("!HI", now, sum(self.sent.values()))
        else:
            data = bytes([now])
        try:
            self.socket.send(data)
        except BlockingIOError:
            return
        self.sent[now] += 1

    def take(self):
        if self.socket is None:
            self.socket = self.listener.accept()[0]
            self.ready()
            self.begun = True
            return
        data = self.socket.recv(4096)
        self.begun = True
        if not self.datagrams:
            if not data:
                raise SystemExit("a connection has ended")
            self.received.update(data)
            return
        number, sequence = struct.unpack("!HI", data)
        self.twice += sequence in self.seen
        self.seen.add(sequence)
        self.received[number] += 1

    def ready(self):
        self.socket.setblocking(False)
        if not self.datagrams:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self):
        return (self.socket or self.listener).fileno()

all = [Flow(number) for number in range(flows)]
for flow in all:
    if flow.socket is not None:
        flow.ready()
due = time.monotonic()
while True:
    now = time.monotonic()
    if now >= due:
        due = now + 0.04
        for flow in all:
            if sending and flow.begun:
                flow.send()
    for flow in select.select(all, [], [], max(0.0, due - now))[0]:
        flow.take()
    if wanted:
        wanted = False
        with open("/tmp/report.new", "w") as file:
            json.dump([[flow.sent, flow.received, flow.twice] for flow in all], file)
        os.rename("/tmp/report.new", "/tmp/report")
"""
ADDRESS = {"alpha": "10.42.1.2", "beta": "10.42.2.2"}
RULES = """
[[policy]]
action = "deny"
from = "%s"
to = "%s"
protocol = "udp"
ports = ["20000-%d"]

[[policy]]
action = "deny"
from = "%s"
to = "%s"
protocol = "tcp"
ports = ["20000-%d"]
"""


def report(host):
    """Of each flow: what was sent and what was received, by generation, and datagrams that came twice."""
    text = host.succeed(
        "rm -f /tmp/report; kill -USR1 $(cat /tmp/traffic); "
        "for i in $(seq 100); do test -e /tmp/report && break; sleep 0.1; done; cat /tmp/report"
    )
    return [
        ({int(k): v for k, v in sent.items()}, {int(k): v for k, v in received.items()}, twice)
        for sent, received, twice in json.loads(text)
    ]


def fast(host):
    """Of which flows the host carries both directions by the fast path."""
    found = set()
    for flow in json.loads(host.succeed("oncache cache list flows --json"))["flows"]:
        ports = [int(flow[end].rsplit(":", 1)[1]) for end in ("local", "remote")]
        server = next((port - 20000 for port in ports if 20000 <= port < 20000 + FLOWS), None)
        if server is not None and flow["state"] == "fast":
            found.add(server)
    return found


def going(generation):
    """Whether on all flows, in both directions, something that was sent in this generation has come by the fast path."""
    everything = set(range(FLOWS))
    return (
        fast(alpha) == everything
        and fast(beta) == everything
        and all(received.get(generation, 0) > 0 for host in (alpha, beta) for _, received, _ in report(host))
    )


def enter(generation, host, command=""):
    host.succeed(f"{command}printf %03d {generation} 1<>/tmp/generation")


start_all()
for host, web, peer in ((alpha, ("web", ADDRESS["beta"]), "client"), (beta, (ADDRESS["alpha"], "web"), "server")):
    host.wait_for_unit("oncache.service")
    host.succeed("oncache container add web")
    last = 20000 + DENIED - 1
    host.succeed(
        f"cat >/tmp/deny.toml <<'EOF'\n{RULES % (*web, last, *web, last)}\nEOF",
        f"cat >/tmp/traffic.py <<'EOF'\n{TRAFFIC}\nEOF",
    )
    enter(0, host)
for host, role in ((beta, "server"), (alpha, "client")):
    host.succeed(f"ip netns exec web python3 /tmp/traffic.py {role} {FLOWS} >&2 & echo $! >/tmp/traffic")
    if role == "server":
        port = 20000 + FLOWS - 1
        beta.wait_until_succeeds(f"ip netns exec web ss -Hltn sport = {port} | grep -q {port}", timeout=60)

passed, late, sent_late = 0, 0, 0
for round in range(ROUNDS):
    host, other = ((alpha, beta), (beta, alpha))[round % 2]
    with subtest(f"round {round + 1}: denied on {host.name}"):
        denied = 2 * round + 1
        retry(lambda _: going(denied - 1), 90)
        enter(denied, host, "oncache policy apply /tmp/deny.toml && ")
        enter(denied, other)

        def watched(_last):
            """Enough was sent since, on all flows and from both ends, and what is not denied is fast again."""
            reports = {it.name: report(it) for it in (alpha, beta)}
            return set(range(DENIED, FLOWS)) <= fast(host) and all(
                sum(flow[0].get(denied, 0) for flow in reports[sender][:DENIED]) > 20
                and sum(flow[1].get(denied, 0) for flow in reports[receiver][DENIED:]) > 20
                for sender, receiver in (("alpha", "beta"), ("beta", "alpha"))
            )

        retry(watched, 60)
        still = fast(host)
        reports = {it.name: report(it) for it in (alpha, beta)}
        sums = {}
        for sender, receiver in (("alpha", "beta"), ("beta", "alpha")):
            for kind, which in (("denied", range(DENIED)), ("others", range(DENIED, FLOWS))):
                # The reports are not of one moment: what others sent and received is compared at the end.
                sent = sum(reports[sender][flow][0].get(denied, 0) for flow in which)
                came = sum(reports[receiver][flow][1].get(denied, 0) for flow in which)
                sums[sender, kind] = sent, came
            passed += sum(reports[receiver][flow][1].get(denied - 1, 0) for flow in range(DENIED))
        print(
            f"denied on {host.name}: "
            + "; ".join(
                f"of denied flows {sums[name, 'denied'][0]} sent by {name} since and {sums[name, 'denied'][1]} arrived, "
                f"of others {sums[name, 'others'][1]}"
                for name in ("alpha", "beta")
            )
        )
        for name in ("alpha", "beta"):
            sent, came = sums[name, "denied"]
            late, sent_late = late + came, sent_late + sent
            assert sent > 20 and came == 0, f"{came} of {sent} packets of denied flows came from {name}"
            assert sums[name, "others"][1] > 20, sums
        assert still == set(range(DENIED, FLOWS)), f"by the fast path on {host.name}: {sorted(still)}"
        for it in (alpha, beta):
            enter(denied + 1, it)
        host.succeed("oncache policy clear")

with subtest("the other flows have lost nothing"):
    retry(lambda _: going(2 * ROUNDS), 90)
    for host in (alpha, beta):
        host.succeed("kill -TERM $(cat /tmp/traffic)")

    def whole(_last):
        """Streams of denied flows get through what they hold back, too."""
        reports = {it.name: report(it) for it in (alpha, beta)}
        lost = []
        for sender, receiver in (("alpha", "beta"), ("beta", "alpha")):
            for flow in range(FLOWS):
                sent, came = (sum(reports[name][flow][at].values()) for name, at in ((sender, 0), (receiver, 1)))
                if (flow >= DENIED or flow % 2) and (sent != came or reports[receiver][flow][2]):
                    lost.append((sender, flow, sent, came, reports[receiver][flow][2]))
        if lost:
            print(f"not whole (sender, flow, sent, arrived, twice): {lost}")
        else:
            others = [sum(reports[name][flow][0].values()) for name in reports for flow in range(DENIED, FLOWS)]
            print(
                f"{ROUNDS} rounds: of the denied flows {passed} packets arrived before, and {late} of {sent_late} sent "
                f"after the calls had returned; the other {ALLOWED} flows: {sum(others)} sent, all arrived, none twice"
            )
        return not lost

    retry(whole, 60)
