# The binary of a running daemon is replaced and its unit restarted, under traffic: by a build with other programs, by
# one with other maps as well, and by the first again. Programs are exchanged in their links, no connection is lost, each
# request is answered, and the flows are fast again.
import json

# Makes two builds of the one that is installed. The daemon tells builds apart by the programs' instructions and by the
# hash of the maps' layout; both are changed where they stand. "programs" has `r = -1` of 64 bits for the `w = -1` of
# 32 at the ends of its programs, which is the same to tc; "maps" has every digit of the hash inverted, too.
BUILDS = r"""
import os, sys
layout = sys.argv[2].encode()
binary = bytearray(open(sys.argv[1], "rb").read())
# The embedded object: an ELF file whose machine is EM_BPF (247).
start = binary.index(b"\x7fELF", 1)
while binary[start + 18] != 247:
    start = binary.index(b"\x7fELF", start + 1)
end = start + int.from_bytes(binary[start + 40 : start + 48], "little")
exits = 0
# In whichever register the compiler has it.
for register in range(10):
    short, long = (bytes([operation, register, 0, 0, 255, 255, 255, 255]) for operation in (0xB4, 0xB7))
    exits += binary[start:end].count(short)
    binary[start:end] = binary[start:end].replace(short, long)
assert exits >= 4 and binary.count(layout) > 0, f"not a binary of the expected form: {exits} exits"
other = b"".join(b"%x" % (15 - int(chr(digit), 16)) for digit in layout)
for name, content in (("programs", binary), ("maps", binary.replace(layout, other))):
    with open(f"/root/oncache-{name}", "wb") as file:
        file.write(content)
    os.chmod(file.name, 0o755)
"""
SERVER = r"""
import selectors, socket
ready = selectors.DefaultSelector()
listener, datagrams = socket.create_server(("", 7000)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("", 7000))
ready.register(listener, selectors.EVENT_READ, lambda: ready.register(
    connection := listener.accept()[0], selectors.EVENT_READ, lambda: connection.sendall(connection.recv(65536))))
ready.register(datagrams, selectors.EVENT_READ, lambda: datagrams.sendto(*datagrams.recvfrom(2048)))
while True:
    for key, _ in ready.select():
        key.data()
"""
# Fifty times a second a datagram with its number, and 1400 bytes of a stream in which each byte is known. Told to end,
# it awaits what has not come back, and says what came.
CLIENT = r"""
import json, select, signal, socket, time
going = True
def end(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, end)
stream = socket.create_connection(("10.42.2.2", 7000), 10)
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.connect(("10.42.2.2", 7000))
known = bytes(range(251)) * 600
at = {"sent": 0, "received": 0, "wrong": 0}
asked, answered, pause, last = 0, set(), 0.0, time.monotonic()
due, deadline = last, None
while going or (time.monotonic() < deadline and (len(answered) < asked or at["received"] < at["sent"])):
    now = time.monotonic()
    if going and now >= due:
        due = max(due + 0.02, now - 0.1)
        datagrams.send(b"%d" % asked)
        asked += 1
        # A connection that stands still must not hold up the datagrams.
        if at["sent"] - at["received"] < 100000:
            part = at["sent"] % 251
            stream.sendall(known[part : part + 1400])
            at["sent"] += 1400
    if going:
        deadline = now + 20
    for source in select.select([stream, datagrams], [], [], max(0.0, min(due - now, 0.02)))[0]:
        data = source.recv(65536)
        if source is datagrams:
            answered.add(int(data))
            pause, last = max(pause, time.monotonic() - last), time.monotonic()
        elif not data:
            raise SystemExit("the connection has ended")
        else:
            part = at["received"] % 251
            at["wrong"] += data != known[part : part + len(data)]
            at["received"] += len(data)
print(json.dumps({"stream": at, "asked": asked, "answered": len(answered), "pause": round(pause, 3)}))
"""


PROGRAMS = ("egress", "ingress", "egress_init", "ingress_init")
# A line each.
LOOK = """
ls /sys/fs/bpf/oncache/maps
oncache stats --json | tr -d '\\n'; echo
bpftool --json prog show
bpftool --json link show
"""


def look():
    """Layout of the maps in use; of the two carrying programs what they carried and what they judged; of the links, by
    id, the instructions' hash."""
    layout, stats, programs, links = alpha.succeed(LOOK).strip().split("\n")
    counters = [c for c in json.loads(stats)["counters"] if c["program"] in ("egress", "ingress")]
    hits = sum(c["packets"] for c in counters if c["reason"] == "hit")
    tags = {program["id"]: program["tag"] for program in json.loads(programs) if program.get("name") in PROGRAMS}
    attached = {link["id"]: tags[link["prog_id"]] for link in json.loads(links) if link.get("prog_id") in tags}
    return layout.split("-")[0], hits, sum(c["packets"] for c in counters), attached


def until_fast(what):
    """Nine of ten packets by the fast path, within two seconds of a running daemon."""

    def fast(_last):
        before = look()
        alpha.succeed("sleep 2")
        after = look()
        hits, judged = after[1] - before[1], after[2] - before[2]
        print(f"{what}: {hits} of {judged} packets by the fast path")
        return judged > 50 and hits > 0.9 * judged

    retry(fast, 60)


def exchange(build, programs_differ, maps_differ):
    before = look()
    old = alpha.get_unit_property("oncache.service", "MainPID")
    # By name, as a package manager does it. In a store that is read-only, over it.
    alpha.succeed(
        f"cp /root/oncache-{build} {program}.new && mv {program}.new {program} || "
        f"mount --bind /root/oncache-{build} {program}",
        "systemctl restart oncache.service",
    )
    alpha.wait_for_unit("oncache.service")
    assert alpha.get_unit_property("oncache.service", "MainPID") != old
    alpha.succeed(f"cmp /root/oncache-{build} /proc/$(systemctl show -P MainPID oncache.service)/exe")
    after = look()
    changed = sum(1 for link, tag in after[3].items() if before[3].get(link) not in (None, tag))
    print(
        f"{build}: maps {before[0]} then {after[0]}; {len(before[3])} links before, "
        f"{len(before[3].keys() & after[3].keys())} of them still there, {changed} with other instructions; "
        f"hits {before[1]} then {after[1]}"
    )
    assert len(before[3]) == 4, before[3]
    assert before[3].keys() == after[3].keys(), "links were taken off and made anew"
    assert changed == (4 if programs_differ else 0), (before[3], after[3])
    assert (before[0] != after[0]) == maps_differ, (before[0], after[0])
    # Counters and caches go on where the maps do.
    assert (after[1] < before[1]) == maps_differ, (before[1], after[1])
    until_fast(build)


start_all()
for host in (alpha, beta):
    host.wait_for_unit("oncache.service")
    host.succeed("oncache container add web")
beta.succeed(f"cat >/tmp/server.py <<'EOF'\n{SERVER}\nEOF")
beta.succeed("ip netns exec web python3 /tmp/server.py >/tmp/server.log 2>&1 &")
alpha.succeed(f"cat >/tmp/client.py <<'EOF'\n{CLIENT}\nEOF", f"cat >/tmp/builds.py <<'EOF'\n{BUILDS}\nEOF")
program = alpha.succeed("readlink /proc/$(systemctl show -P MainPID oncache.service)/exe").strip()
layout = look()[0]
alpha.succeed(f"cp {program} /root/oncache-installed && python3 /tmp/builds.py {program} {layout}")
beta.wait_until_succeeds("ip netns exec web ss -Hltn sport = 7000 | grep -q 7000", timeout=60)
alpha.succeed("ip netns exec web python3 /tmp/client.py >/tmp/report 2>/tmp/error & echo $! >/tmp/client")
until_fast("before")

with subtest("other programs, the same maps"):
    exchange("programs", programs_differ=True, maps_differ=False)

with subtest("other maps"):
    exchange("maps", programs_differ=False, maps_differ=True)

with subtest("back to the first"):
    exchange("installed", programs_differ=True, maps_differ=True)

with subtest("nothing was lost"):
    alpha.succeed("kill -TERM $(cat /tmp/client)")
    alpha.wait_until_succeeds("! kill -0 $(cat /tmp/client) 2>/dev/null", timeout=60)
    came = json.loads(alpha.succeed("cat /tmp/error >&2; cat /tmp/report"))
    print(came)
    assert came["asked"] > 500 and came["answered"] == came["asked"], came
    stream = came["stream"]
    assert stream["sent"] > 500_000 and stream["received"] == stream["sent"] and not stream["wrong"], came
