# `oncache down`, by its unit: what the host was like before is what it is like after, though a stream runs; and the
# daemon can start again.
import json

# What oncache may change, as far as names and numbers do not change by themselves.
LOOK = """
ip -br link | awk '{print $1}' | sort
ip route show table all | grep -v ' dev lo' | sort
nft list ruleset
tc qdisc show dev eth1 | grep -v '^qdisc \\(mq\\|fq_codel\\|pfifo_fast\\)' || true
ls /sys/fs/bpf
find /run/netns -mindepth 1 2>/dev/null || true
bpftool prog show | grep ' name ' | grep -v ' name sd_' || true
bpftool map show | grep -i ' name [a-z]' || true
sysctl net.netfilter.nf_conntrack_tcp_be_liberal
"""


def look():
    return alpha.succeed(LOOK)


start_all()
for host in (alpha, beta):
    host.wait_for_unit("oncache.service")
# Twice, because the first start may have loaded modules, which stay.
alpha.succeed("systemctl start oncache-down.service")
alpha.wait_until_fails("systemctl is-active oncache.service", timeout=60)
before = look()
assert "oncache" not in before, before
alpha.succeed("systemctl start oncache.service")

with subtest("a stream by the fast path"):
    for host in (alpha, beta):
        host.succeed("oncache container add web")
    beta.succeed("ip netns exec web iperf3 --server --daemon")
    alpha.succeed("ip netns exec web iperf3 --client 10.42.2.2 --time 60 >/dev/null 2>&1 &")
    retry(lambda _: (json.loads(alpha.succeed("oncache stats --json"))["hit_ratio"]["egress"] or 0) > 0.5, 60)
    assert look() != before

with subtest("down, while it runs"):
    alpha.succeed("systemctl start oncache-down.service")
    # What runs in the container holds its namespace; the name is gone at once.
    alpha.succeed("pkill iperf3 || true")
    alpha.wait_until_fails("pgrep iperf3", timeout=30)
    after = look()
    print(f"{len(before.splitlines())} lines before, {len(after.splitlines())} after")
    t.assertEqual(before, after)
    alpha.require_unit_state("oncache.service", "inactive")

with subtest("and up again"):
    alpha.succeed("systemctl start oncache.service", "oncache container add web")
    alpha.wait_until_succeeds("ip netns exec web ping -c 1 -W 2 10.42.2.2", timeout=60)
