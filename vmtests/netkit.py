# Containers on netkit pairs (container.device = "netkit"): `egress` runs where the container sends, and everything
# else is as with veth: established flows are fast both ways, aggregates and fragments arrive whole, a program that
# somebody detaches comes back, no packet is lost without a daemon, and both kinds of device live side by side.
import json
import shlex

# Receives what the client says it will send, answers with a hash of it. TCP: the client's byte count, the bytes. UDP:
# the datagrams in whatever order, by the number that each begins with.
SERVER = r"""
import hashlib, socket, threading
def tcp():
    listener = socket.create_server(("", 7001))
    while True:
        connection, _ = listener.accept()
        size = int(connection.recv(16))
        connection.sendall(b"go")
        digest = hashlib.sha256()
        while size:
            data = connection.recv(min(size, 1 << 16))
            if not data:
                break
            digest.update(data)
            size -= len(data)
        connection.sendall(digest.digest())
        connection.close()
def udp():
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    server.bind(("", 7002))
    came = {}
    while True:
        data, peer = server.recvfrom(1 << 16)
        if data == b"count":
            digest = hashlib.sha256(b"".join(came[n] for n in sorted(came))).hexdigest()
            server.sendto(f"{len(came)} {digest}".encode(), peer)
            came = {}
        elif data[:4] == b"echo":
            server.sendto(data, peer)
        else:
            came[int.from_bytes(data[:4], "big")] = data
threading.Thread(target=tcp, daemon=True).start()
udp()
"""
# argv: address, what to send. Prints how much arrived whole; fails if anything did not.
CLIENT = r"""
import hashlib, os, socket, sys
address, what = sys.argv[1:3]
def stream(size):
    connection = socket.create_connection((address, 7001), 10)
    connection.settimeout(60)
    connection.sendall(str(size).encode().ljust(16))
    assert connection.recv(2) == b"go"
    data = os.urandom(size)
    connection.sendall(data)
    answer = b""
    while len(answer) < 32:
        more = connection.recv(32)
        assert more, "closed"
        answer += more
    assert answer == hashlib.sha256(data).digest(), "damaged"
    print(size)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.connect((address, 7002))
udp.settimeout(10)
def echo(count):
    for i in range(count):
        udp.send(b"echo%d" % i)
        assert udp.recv(64) == b"echo%d" % i
def tally(sent):
    udp.send(b"count")
    count, digest = udp.recv(200).decode().split()
    assert int(count) == len(sent), f"{count} of {len(sent)} datagrams"
    assert digest == hashlib.sha256(b"".join(sent)).hexdigest(), "damaged"
    print(len(sent))
def datagrams(size, count):
    return [i.to_bytes(4, "big") + os.urandom(size - 4) for i in range(count)]
echo(5)
if what == "tcp":
    stream(4 << 20)
elif what == "gso":
    # Twenty datagrams in one call (UDP_SEGMENT), the last one shorter.
    all = datagrams(1200, 20 * 40)
    for start in range(0, len(all), 20):
        part = all[start : start + 20]
        part[-1] = all[start + 19] = part[-1][:700]
        udp.sendmsg([b"".join(part)], [(17, 103, (1200).to_bytes(2, "little"))])
        # Their answers bound what is on its way.
        echo(1)
    tally(all)
elif what == "fragments":
    all = datagrams(8000, 60)
    for datagram in all:
        udp.send(datagram)
        echo(1)
    tally(all)
elif what == "echo":
    echo(int(sys.argv[3]))
    print("ok")
"""
# IPv4 from another's address to another container, in a frame that the sender calls something else: argv: MAC and
# address of the receiver, the sender's MAC and the stolen address. Twenty such, and ARP of the same kind.
SPOOF = r"""
import socket, struct, sys
to_mac, to, own_mac, stolen = sys.argv[1:]
mac = lambda text: bytes.fromhex(text.replace(":", ""))
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff
udp = struct.pack("!HHHH", 7003, 7003, 8 + 6, 0) + b"stolen"
ip = lambda check: struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, check, socket.inet_aton(stolen), socket.inet_aton(to))
frame = mac(to_mac) + mac(own_mac) + b"\x08\x00" + ip(checksum(ip(0))) + udp
arp = mac(to_mac) + mac(own_mac) + b"\x08\x06" + struct.pack("!HHBBH", 1, 0x800, 6, 4, 2) + mac(own_mac) + socket.inet_aton(stolen) + mac(to_mac) + socket.inet_aton(to)
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
for data in (frame, arp):
    for protocol in (0x0800, 0x0806, 0x1234):
        for _ in range(20):
            raw.sendto(data, ("eth0", protocol))
"""

# Packets of a fast flow, written by hand; argv: the gateway's MAC, the sender's. Prints how many of ten are answered,
# in a frame that says IPv4, and in one that says ARP while the socket says IPv4.
DISGUISED = r"""
import socket, struct, sys
gateway, own = (bytes.fromhex(text.replace(":", "")) for text in sys.argv[1:])
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff
flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
flow.connect(("10.42.2.2", 7002))
flow.settimeout(10)
for i in range(10):
    flow.send(b"echo")
    flow.recv(64)
address, port = flow.getsockname()
udp = struct.pack("!HHHH", port, 7002, 8 + 6, 0) + b"echo!!"
ip = lambda check: struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, check, socket.inet_aton(address), socket.inet_aton("10.42.2.2"))
packet = ip(checksum(ip(0))) + udp
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
flow.settimeout(3)
for says in (b"\x08\x00", b"\x08\x06"):
    for _ in range(10):
        raw.sendto(gateway + own + says + packet, ("eth0", 0x0800))
    answered = 0
    try:
        while answered < 10:
            flow.recv(64)
            answered += 1
    except TimeoutError:
        pass
    print(answered)
"""


def stats(host):
    return json.loads(host.succeed("oncache stats --json"))


def counts(host, program):
    """Hits, and all that the program judged."""
    of = [c for c in stats(host)["counters"] if c["program"] == program]
    return sum(c["packets"] for c in of if c["reason"] == "hit"), sum(c["packets"] for c in of)


def programs(host):
    status = json.loads(host.succeed("oncache status --json"))
    return {(p["device"], p["program"]): p for p in status["cache"]["programs"]}


def kind(host, container):
    return json.loads(host.succeed(f"ip -j -d link show onc-{container}"))[0]["linkinfo"]["info_kind"]


def send(host, what, address, container="web"):
    """Sends it, and says how many packets went out fast at the sender."""
    hits, judged = counts(host, "egress")
    arrived = host.succeed(f"ip netns exec {container} python3 /tmp/client.py {address} {what}", timeout=120).strip()
    hits_after, judged_after = counts(host, "egress")
    hits, judged = hits_after - hits, judged_after - judged
    print(f"{what} from {host.name}'s {container} to {address}: {arrived} arrived whole, {hits} of {judged} packets fast")
    return hits, judged


start_all()
for host in (alpha, beta):
    host.wait_for_unit("oncache.service")
    host.succeed(f"cat >/tmp/server.py <<'EOF'\n{SERVER}\nEOF", f"cat >/tmp/client.py <<'EOF'\n{CLIENT}\nEOF")
    host.succeed("oncache container add web")
    host.succeed("ip netns exec web python3 /tmp/server.py >/dev/null 2>/tmp/server.log & echo $! >/tmp/server")
    host.wait_until_succeeds("ip netns exec web ss -Hlun sport = 7002 | grep -q 7002", timeout=60)

with subtest("the device is netkit, and egress is at its peer hook"):
    for host in (alpha, beta):
        host.succeed("oncache check | grep 'netkit: available'")
        assert kind(host, "web") == "netkit", kind(host, "web")
        host.succeed("ip -j link show onc-web | grep -q '\"master\":\"oncache0\"'")
        found = programs(host)
        print(f"{host.name}: {[(*key, found[key]['link']) for key in found]}")
        assert found["onc-web", "egress"]["link"] == "netkit", found
        assert found["onc-web", "ingress_init"]["link"] == "tcx", found

with subtest("both ways, fast"):
    for host, address in ((alpha, "10.42.2.2"), (beta, "10.42.1.2")):
        for what in ("tcp", "gso"):
            hits, judged = send(host, what, address)
            assert hits > 0.8 * judged, f"{what}: {hits} of {judged}"
            assert hits > 50, hits

with subtest("fragments by the slow path, whole"):
    for host, address in ((alpha, "10.42.2.2"), (beta, "10.42.1.2")):
        hits, judged = send(host, "fragments", address)
        reasons = {c["reason"]: c["packets"] for c in stats(host)["counters"] if c["program"] == "egress"}
        assert reasons["fragment"] >= 60 * 6, reasons

with subtest("a program that somebody detached is put back"):
    # bpf(BPF_LINK_DETACH) on the pinned link.
    detach = (
        "import ctypes, struct; libc = ctypes.CDLL(None, use_errno=True)\n"
        "path = ctypes.create_string_buffer(b'/sys/fs/bpf/oncache/links/onc-web:egress-netkit')\n"
        "get = ctypes.create_string_buffer(struct.pack('QII', ctypes.addressof(path), 0, 0))\n"
        "link = libc.syscall(321, 7, get, 16)\n"
        "assert link >= 0\n"
        "assert libc.syscall(321, 34, struct.pack('I', link), 4) == 0\n"
    )
    before = programs(alpha)["onc-web", "egress"]["link_id"]
    alpha.succeed(f"python3 -c {shlex.quote(detach)}")
    retry(lambda _: programs(alpha)["onc-web", "egress"]["link_id"] != before, 30)
    hits, judged = send(alpha, "tcp", "10.42.2.2")
    assert hits > 0.8 * judged, (hits, judged)

with subtest("programs are replaced in their link, and run on without a daemon"):
    before = programs(alpha)["onc-web", "egress"]
    hits, _ = counts(alpha, "egress")
    alpha.succeed("systemctl stop oncache")
    alpha.succeed("ip netns exec web python3 /tmp/client.py 10.42.2.2 echo 300")
    alpha.succeed("systemctl start oncache")
    after = programs(alpha)["onc-web", "egress"]
    carried = counts(alpha, "egress")[0] - hits
    print(f"{carried} of 300 packets fast without a daemon; link {before['link_id']} -> {after['link_id']}, "
          f"program {before['program_id']} -> {after['program_id']}")
    assert carried > 280, carried
    assert before["link_id"] == after["link_id"] and before["program_id"] != after["program_id"], (before, after)

with subtest("veth and netkit side by side"):
    alpha.succeed(
        "sed 's/^device = .*/device = \"veth\"/' /etc/oncache/config.toml >/tmp/config.toml",
        "cp --remove-destination /tmp/config.toml /etc/oncache/config.toml",
        "systemctl reload oncache",
    )
    alpha.wait_until_succeeds("oncache container add old", timeout=30)
    assert (kind(alpha, "web"), kind(alpha, "old")) == ("netkit", "veth")
    found = programs(alpha)
    assert found["onc-old", "egress"]["link"] == "tcx" and found["onc-web", "egress"]["link"] == "netkit", found
    for container in ("old", "web"):
        hits, judged = send(alpha, "tcp", "10.42.2.2", container)
        assert hits > 0.8 * judged, (hits, judged)
    # By the bridge, from one kind to the other.
    send(alpha, "tcp", "10.42.1.2", "old")

with subtest("nobody sends from another's address, whatever it calls its frames"):
    alpha.succeed(f"cat >/tmp/spoof.py <<'EOF'\n{SPOOF}\nEOF")
    look = json.loads(alpha.succeed("ip netns exec old ip -j addr show eth0"))[0]
    victim = (look["address"], next(a["local"] for a in look["addr_info"] if a["family"] == "inet"))
    own = json.loads(alpha.succeed("ip netns exec web ip -j addr show eth0"))[0]["address"]
    stolen = "10.42.2.77"
    capture = f"ip netns exec old tcpdump --immediate-mode -nni eth0 -w /tmp/spoof.pcap 'host {stolen}'"
    alpha.succeed(f"{capture} >/dev/null 2>&1 & echo $! >/tmp/tcpdump")
    alpha.wait_for_file("/tmp/spoof.pcap")
    dropped = stats(alpha)["spoofed"]
    alpha.succeed(f"ip netns exec web python3 /tmp/spoof.py {victim[0]} {victim[1]} {own} {stolen}")
    alpha.succeed("sleep 1; kill $(cat /tmp/tcpdump); sleep 1")
    seen = alpha.succeed("tcpdump -enr /tmp/spoof.pcap 2>/dev/null")
    dropped = stats(alpha)["spoofed"] - dropped
    print(f"120 frames from {stolen}, which is not the sender's: {dropped} dropped and counted, {len(seen.splitlines())} delivered")
    assert not seen, seen
    assert dropped == 120, dropped

with subtest("nor by the fast path what the slow path would refuse"):
    alpha.succeed(f"cat >/tmp/disguised.py <<'EOF'\n{DISGUISED}\nEOF")
    gateway = json.loads(alpha.succeed("ip -j link show oncache0"))[0]["address"]
    plain, disguised = alpha.succeed(f"ip netns exec web python3 /tmp/disguised.py {gateway} {own}").split()
    print(f"of ten packets of a fast flow, {plain} were answered in an IPv4 frame, {disguised} in one that says ARP")
    assert (plain, disguised) == ("10", "0"), (plain, disguised)

with subtest("deleted and added again, nothing is left behind"):
    alpha.succeed("oncache container del old")
    links = "find /sys/fs/bpf/oncache/links -name 'onc-*' | sort; ip -br link | grep -c onc-"
    before = alpha.succeed(links)
    for _ in range(3):
        alpha.succeed("kill $(cat /tmp/server) || true", "oncache container del web")
        alpha.fail("ls /sys/fs/bpf/oncache/links | grep onc-web")
        alpha.succeed(
            "sed 's/^device = .*/device = \"netkit\"/' /etc/oncache/config.toml >/tmp/config.toml",
            "cp --remove-destination /tmp/config.toml /etc/oncache/config.toml",
            "systemctl reload oncache",
        )
        alpha.wait_until_succeeds("oncache container add web --ip 10.42.1.2", timeout=30)
    t.assertEqual(alpha.succeed(links), before)
    hits, judged = send(alpha, "tcp", "10.42.2.2")
    assert hits > 0.8 * judged, (hits, judged)

with subtest("set down inside: the sender is told, and up again it is reached"):
    alpha.succeed("ip netns exec web ip link set eth0 down")
    beta.fail("ip netns exec web ping -c 1 -W 2 10.42.1.2")
    alpha.succeed("ip netns exec web ip link set eth0 up", "ip netns exec web ip route add default via 10.42.1.1")
    beta.wait_until_succeeds("ip netns exec web ping -c 1 -W 2 10.42.1.2", timeout=60)
    hits, judged = send(alpha, "tcp", "10.42.2.2")
    assert hits > 0.8 * judged, (hits, judged)

with subtest("by the peer hook where the rest are filters of clsact, and back"):
    for attach in ("clsact", "auto"):
        alpha.succeed(
            f"sed '/^attach = /d; s/^enabled = .*/&\\nattach = \"{attach}\"/' /etc/oncache/config.toml >/tmp/config.toml",
            "cp --remove-destination /tmp/config.toml /etc/oncache/config.toml",
            "systemctl reload oncache",
        )
        wanted = "clsact" if attach == "clsact" else "tcx"
        retry(lambda _: json.loads(alpha.succeed("oncache status --json"))["cache"]["attach"] == wanted, 60)
        found = programs(alpha)
        print(f"{attach}: {[(*key, found[key]['link']) for key in found]}")
        assert found["onc-web", "egress"]["link"] == "netkit", found
        assert len(found) == (1 if attach == "clsact" else 4), found
        filters = alpha.succeed("tc filter show dev onc-web egress; tc filter show dev onc-web ingress").count(" bpf ")
        assert (filters > 0) == (attach == "clsact"), filters
        hits, judged = send(alpha, "tcp", "10.42.2.2")
        assert hits > 0.8 * judged, (hits, judged)

with subtest("down leaves nothing"):
    alpha.succeed("systemctl start oncache-down.service")
    alpha.fail("ip -br link | grep -E 'onc|nk'", "ls /sys/fs/bpf/oncache", "nft list ruleset | grep oncache")
    left = alpha.succeed("bpftool prog show | grep -E 'name (e|in)gress' || true")
    assert not left, left
