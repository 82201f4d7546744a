# An eBPF program on each machine's underlay drops every thousandth packet that comes in, before oncache's own programs
# (XDP goes before tc).

LOADER = r"""
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
MAP_CREATE, PROG_LOAD, OBJ_PIN = 0, 5, 6
ARRAY, XDP = 2, 6
DROP, PASS = 1, 2

def bpf(command, attributes):
    result = libc.syscall(321, command, attributes, len(attributes))  # x86-64
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def instruction(code, to=0, source=0, offset=0, value=0):
    return struct.pack("<BBhi", code, source << 4 | to, offset, value)

# One number, of the packets so far.
counter = bpf(MAP_CREATE, struct.pack("=IIII", ARRAY, 4, 8, 1))
program = b"".join((
    instruction(0x62, to=10, offset=-4),                      # *(u32 *)(r10 - 4) = 0
    instruction(0xbf, to=2, source=10),                       # r2 = r10
    instruction(0x07, to=2, value=-4),                        # r2 += -4
    instruction(0x18, to=1, source=1, value=counter),         # r1 = the map
    instruction(0),
    instruction(0x85, value=1),                               # r0 = bpf_map_lookup_elem(r1, r2)
    instruction(0x15, to=0, offset=5),                        # if r0 == 0 goto pass
    instruction(0xb7, to=1, value=1),                         # r1 = 1
    instruction(0xdb, to=0, source=1, value=1),               # r1 = atomic_fetch_add(r0, r1)
    instruction(0x97, to=1, value=1000),                      # r1 %= 1000
    instruction(0xb7, to=0, value=DROP),                      # r0 = XDP_DROP
    instruction(0x15, to=1, offset=1, value=999),             # if r1 == 999 goto exit
    instruction(0xb7, to=0, value=PASS),                      # pass: r0 = XDP_PASS
    instruction(0x95),                                        # exit
))
code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
log = ctypes.create_string_buffer(1 << 16)
try:
    loaded = bpf(PROG_LOAD, struct.pack(
        "=IIQQIIQII", XDP, len(program) // 8, ctypes.addressof(code), ctypes.addressof(licence), 1, len(log),
        ctypes.addressof(log), 0, 0))
except OSError as error:
    raise SystemExit(f"{error}: {log.value.decode()}")
path = ctypes.create_string_buffer(b"/sys/fs/bpf/lossy")
bpf(OBJ_PIN, struct.pack("=QII", ctypes.addressof(path), loaded, 0))
"""

start_all()
for machine in machines:
    machine.succeed(
        f"cat >/tmp/lossy.py <<'EOF'\n{LOADER}\nEOF",
        "python3 /tmp/lossy.py",
        "bpftool net attach xdpgeneric pinned /sys/fs/bpf/lossy dev eth1",
    )
    attached = machine.succeed("ip link show eth1 | grep 'prog/xdp'").strip()
    print(f"{machine.name} loses every thousandth packet: {attached}")
