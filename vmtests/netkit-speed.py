# What netkit saves: instructions a transaction or packet, container to container, by veth, by netkit and by the plain
# overlay. Two hosts made of network namespaces in one guest whose clock counts instructions (one a nanosecond), so that
# neither the emulation's speed nor anybody else's load is in the figures. Prints medians of interleaved rounds.
import json
import statistics

ROUNDS = 7
WORKLOADS = {"tcp-rr": 2000, "udp-rr": 2000, "udp": 16000}
COLUMNS = ("veth", "netkit", "overlay")
# Two pairs of hosts: with the caches, and without.
PAIRS = {"a": "b", "c": "d"}
NUMBERS = {"a": 1, "b": 2, "c": 1, "d": 2}

CONFIG = """
[node]
name = "{name}"
underlay = "eth1"
[overlay]
subnet = "10.42.{number}.0/24"
network = "10.42.0.0/16"
vni = 42
[[peers]]
name = "{peer}"
address = "192.168.50.{peer_number}"
subnet = "10.42.{peer_number}.0/24"
[cache]
enabled = {enabled}
[container]
device = "veth"
"""


def oncache(host, command):
    return f"oncache --socket /run/oncache-{host}.sock {command}"


def start(host, peer, enabled):
    number, peer_number = NUMBERS[host], NUMBERS[peer]
    config = CONFIG.format(name=host, number=number, peer=peer, peer_number=peer_number, enabled=str(enabled).lower())
    alpha.succeed(
        f"cat >/tmp/{host}.toml <<'EOF'\n{config}\nEOF",
        f"ip -n {host} link set lo up",
        f"ip -n {host} addr add 192.168.50.{number}/24 dev eth1",
        f"ip -n {host} link set eth1 up",
        # Each has a bpffs of its own.
        f"ip netns exec {host} sh -c 'mount -t bpf bpf /sys/fs/bpf; exec oncache run --config /tmp/{host}.toml "
        f"--socket /run/oncache-{host}.sock --state /tmp/state-{host}' >/tmp/{host}.log 2>&1 & echo $! >/tmp/{host}.pid",
    )
    alpha.wait_until_succeeds(oncache(host, "status"), timeout=300)


def add(host, column):
    """A container, and the path of its namespace and its address."""
    name = f"{column}-{host}"
    alpha.succeed(f"ip netns add {name}", oncache(host, f"container add {column} --netns /run/netns/{name}"))
    rows = json.loads(alpha.succeed(oncache(host, "container list --json")))
    kind = json.loads(alpha.succeed(f"ip -n {host} -j -d link show onc-{column}"))[0]["linkinfo"]["info_kind"]
    assert kind == ("netkit" if column == "netkit" else "veth"), kind
    return f"/run/netns/{name}", next(row["ip"] for row in rows if row["name"] == column)


def fast(host):
    counters = json.loads(alpha.succeed(oncache(host, "stats --json")))["counters"]
    return {
        program: tuple(
            sum(c["packets"] for c in counters if c["program"] == program and (every or c["reason"] == "hit"))
            for every in (False, True)
        )
        for program in ("egress", "ingress")
    }


alpha.wait_for_unit("oncache.service")
alpha.succeed("oncache down", "systemctl stop oncache.service")
alpha.copy_from_host("../target/release/oncache-path-cost", "/tmp/path-cost")
alpha.succeed("chmod 755 /tmp/path-cost", "uname -r >&2")
for one, other in PAIRS.items():
    alpha.succeed(
        f"ip netns add {one}", f"ip netns add {other}",
        f"ip -n {one} link add eth1 type veth peer name eth1 netns {other}",
    )
    start(one, other, one == "a")
    start(other, one, one == "a")
ends = {}
for column in COLUMNS:
    pair = ("a", "b") if column != "overlay" else ("c", "d")
    if column == "netkit":
        for host in pair:
            alpha.succeed(
                f"sed -i 's/\"veth\"/\"netkit\"/' /tmp/{host}.toml", f"kill -HUP $(cat /tmp/{host}.pid)",
                "sleep 1",
            )
    ends[column] = (pair[0], *(add(host, column) for host in pair))
    (_, (source, _), (_, address)) = ends[column]
    alpha.wait_until_succeeds(f"ip netns exec {source.split('/')[-1]} ping -c 1 -W 2 {address}", timeout=120)

figures = {}
lowest = {}
for turn in range(ROUNDS):
    for workload, count in WORKLOADS.items():
        for column in COLUMNS:
            host, (source, _), (target, address) = ends[column]
            before = fast(host)
            cost = float(alpha.succeed(f"/tmp/path-cost {source} {target} {address} {workload} {count}", timeout=300))
            after = fast(host)
            figures.setdefault((workload, column), []).append(cost)
            hits, judged = (after["egress"][i] - before["egress"][i] for i in (0, 1))
            if column == "overlay":
                assert hits == 0, hits
            else:
                assert judged >= count, (judged, count)
                lowest[workload, column] = min(lowest.get((workload, column), 1.0), hits / judged)

print(f"instructions, medians of {ROUNDS} rounds (least to most)")
for workload in WORKLOADS:
    medians = {}
    for column in COLUMNS:
        costs = figures[workload, column]
        medians[column] = statistics.median(costs)
        ratio = f", hit ratio {lowest[workload, column]:.3f}" if column != "overlay" else ""
        print(f"{workload:7} {column:8} {medians[column]:9.0f} ({min(costs):.0f} to {max(costs):.0f}){ratio}")
    print(
        f"{workload:7} rate by netkit: {medians['veth'] / medians['netkit']:.3f} of veth's, "
        f"{medians['overlay'] / medians['netkit']:.3f} of the overlay's; by veth: "
        f"{medians['overlay'] / medians['veth']:.3f} of the overlay's"
    )
    assert all(value > 0.95 for (which, _), value in lowest.items() if which == workload), lowest
    assert medians["netkit"] < medians["veth"], f"{workload}: netkit is not ahead of veth"
