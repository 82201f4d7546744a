# Marks of congestion that the wire puts on the outer header reach the container, by the fast path as by the
# plain overlay: DCTCP lives on them. And all DSCP values arrive as they were sent, marked packets or not.
import json
import re

RATE_MBIT = 15

# A slow link with a queue that marks from 1 ms on.
SLOW_LINK = (
    f"tc qdisc replace dev eth1 root handle 1: tbf rate {RATE_MBIT}mbit burst 20kb limit 400kb",
    "tc qdisc replace dev eth1 parent 1:1 handle 10: fq_codel ce_threshold 1ms",
)
# A queue that marks whatever can be marked. Below another, because alone and empty it would be passed by
# (TCQ_F_CAN_BYPASS).
MARK_ALL = (
    "tc qdisc replace dev eth1 root handle 1: tbf rate 1gbit burst 200kb limit 400kb",
    "tc qdisc replace dev eth1 parent 1:1 handle 10: fq_codel ce_threshold 1us",
)

# Sends packets of every DSCP but 0, ECT(0), on one flow that is answered; prints what came at the other end.
SERVER = r"""
import json, socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", 7000))
server.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
while True:
    data, control, _, peer = server.recvmsg(64, 64)
    tos = [value[0] for _, kind, value in control if kind == socket.IP_TOS]
    server.sendto(json.dumps([data.decode(), tos[0]]).encode(), peer)
"""
CLIENT = r"""
import json, socket, time
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect(("10.42.2.2", 7000))
client.settimeout(5)
def exchange(name, tos):
    client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
    client.send(name.encode())
    return json.loads(client.recv(256))
for i in range(10):
    exchange("first", 0)
came = []
for turn in range(10):
    for dscp in range(1, 64):
        name, tos = exchange(f"{turn}.{dscp}", dscp << 2 | 2)
        assert name == f"{turn}.{dscp}", name
        came.append([dscp, tos >> 2, tos & 3])
print(json.dumps(came))
"""


def counts(host):
    """Of the two programs that carry packets: hits, and all that they judged."""
    counters = json.loads(host.succeed("oncache stats --json"))["counters"]
    found = {}
    for program in ("egress", "ingress"):
        of = [c for c in counters if c["program"] == program]
        found[program] = (sum(c["packets"] for c in of if c["reason"] == "hit"), sum(c["packets"] for c in of))
    return found


def ratio(host, program, before):
    after = counts(host)
    hits, judged = (after[program][i] - before[program][i] for i in (0, 1))
    return hits / judged if judged else 0.0


def marks(host, *names):
    """Counters of the container's IP and TCP."""
    text = host.succeed(f"ip netns exec web nstat -asz {' '.join(names)} 2>/dev/null")
    return {line.split()[0]: int(line.split()[1]) for line in text.splitlines() if not line.startswith("#")}


def set_cache(enabled):
    """The file is a link into the store on NixOS, and is replaced by one of our own."""
    for host in (alpha, beta):
        host.succeed(
            f"sed 's/^enabled = .*/enabled = {str(enabled).lower()}/' /etc/oncache/config.toml >/tmp/config.toml",
            "cp --remove-destination /tmp/config.toml /etc/oncache/config.toml",
            "systemctl reload oncache",
        )
        retry(lambda _: bool(json.loads(host.succeed("oncache status --json"))["cache"]) == enabled, 60)


def dctcp_stream(what):
    """CE-marked packets that reached beta's container, and the hit ratio of what alpha sent and beta received."""
    sent_before, received_before = counts(alpha), counts(beta)
    before = marks(beta, "IpExtInCEPkts", "IpExtInECT0Pkts")
    delivered = marks(alpha, "TcpExtTCPDeliveredCE")["TcpExtTCPDeliveredCE"]
    # Looked at for as long as it runs, by one command: how soon another would come is not ours to say.
    alpha.succeed(
        "rm -f /tmp/states; ip netns exec web iperf3 --client 10.42.2.2 --time 8 --json >/tmp/stream.json 2>&1 & "
        "stream=$!; for i in $(seq 200); do kill -0 $stream 2>/dev/null || break; "
        "ip netns exec web ss -Htin dst 10.42.2.2 dport = 5201 >>/tmp/states; sleep 0.5; done; "
        "! kill -0 $stream 2>/dev/null"
    )
    state = alpha.succeed("cat /tmp/states")
    report = json.loads(alpha.succeed("cat /tmp/stream.json"))
    assert "end" in report and "sum_received" in report["end"], report
    after = marks(beta, "IpExtInCEPkts", "IpExtInECT0Pkts")
    ce = after["IpExtInCEPkts"] - before["IpExtInCEPkts"]
    ect = after["IpExtInECT0Pkts"] - before["IpExtInECT0Pkts"]
    delivered = marks(alpha, "TcpExtTCPDeliveredCE")["TcpExtTCPDeliveredCE"] - delivered
    out, into = ratio(alpha, "egress", sent_before), ratio(beta, "ingress", received_before)
    alphas = [int(a) for a in re.findall(r"dctcp:\(.*?alpha[: ](\d+)", state)]
    queue = alpha.succeed("tc -s qdisc show dev eth1 | grep -o 'ce_mark [0-9]*' | tail -1").split()[1]
    print(
        f"DCTCP, {what}: {ce} packets with CE and {ect} with ECT(0) in beta's container; alpha's TCP counts "
        f"{delivered} delivered CE; DCTCP alpha {alphas} of 1024; the queue has marked {queue} so far; "
        f"{report['end']['sum_received']['bits_per_second'] / 1e6:.1f} of {RATE_MBIT} Mbit/s, "
        f"{report['end']['sum_sent'].get('retransmits')} retransmits; "
        f"hit ratio: alpha egress {out:.3f}, beta ingress {into:.3f}"
    )
    assert "dctcp" in state, f"the stream does not use DCTCP: {state}"
    assert ce > 0 and delivered > 0, "no mark has arrived"
    assert ect > 0, "no packet was without a mark: nothing to learn from a queue that marks all"
    assert max(alphas) > 0, state
    return out, into


def dscp_values(what):
    sent_before, received_before = counts(alpha), counts(beta)
    came = json.loads(alpha.succeed("ip netns exec web python3 /tmp/client.py"))
    assert len(came) == 630, len(came)
    changed = [(sent, got) for sent, got, _ in came if sent != got]
    marked = {sent for sent, _, ecn in came if ecn == 3}
    odd = [ecn for _, _, ecn in came if ecn not in (2, 3)]
    out, into = ratio(alpha, "egress", sent_before), ratio(beta, "ingress", received_before)
    print(
        f"DSCP, {what}: {len(came)} packets of {len({sent for sent, _, _ in came})} values, {len(changed)} changed; "
        f"CE on {sum(1 for _, _, ecn in came if ecn == 3)} of them, of {len(marked)} values; "
        f"hit ratio: alpha egress {out:.3f}, beta ingress {into:.3f}"
    )
    assert not changed, changed
    assert not odd, odd
    assert len(marked) == 63, f"marks arrived with the DSCP values {sorted(marked)} only"
    return out, into


start_all()
for host in (alpha, beta):
    host.wait_for_unit("oncache.service")
    host.succeed("modprobe -a tcp_dctcp sch_tbf sch_fq_codel")
    # A new namespace takes over the host's default; within it, DCTCP may not be made the default.
    host.succeed("sysctl -w net.ipv4.tcp_congestion_control=dctcp")
    host.succeed("oncache container add web")
    host.succeed("ip netns exec web sysctl net.ipv4.tcp_congestion_control | grep dctcp")
beta.succeed("ip netns exec web iperf3 --server --daemon")
beta.succeed(f"cat >/tmp/server.py <<'EOF'\n{SERVER}\nEOF")
beta.succeed("ip netns exec web python3 /tmp/server.py >/dev/null 2>&1 &")
alpha.succeed(f"cat >/tmp/client.py <<'EOF'\n{CLIENT}\nEOF")

with subtest("DCTCP by the fast path"):
    alpha.succeed(*SLOW_LINK)
    out, into = dctcp_stream("fast path")
    assert out > 0.9 and into > 0.9, f"not by the fast path: {out}, {into}"

with subtest("63 DSCP values with marks by the fast path"):
    alpha.succeed(*MARK_ALL)
    out, into = dscp_values("fast path")
    assert out > 0.9 and into > 0.9, f"not by the fast path: {out}, {into}"

with subtest("the same by the plain overlay"):
    set_cache(False)
    out, into = dscp_values("plain overlay")
    assert (out, into) == (0.0, 0.0), f"the caches are off, but: {out}, {into}"
    alpha.succeed(*SLOW_LINK)
    out, into = dctcp_stream("plain overlay")
    assert (out, into) == (0.0, 0.0), f"the caches are off, but: {out}, {into}"
