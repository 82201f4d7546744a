# The underlay's cable is pulled and put back: the flow goes on where it was, by the fast path, and no one is
# restarted.
import json


def hits(host):
    counters = json.loads(host.succeed("oncache stats --json"))["counters"]
    return sum(c["packets"] for c in counters if c["reason"] == "hit")


start_all()
for host in (alpha, beta):
    host.wait_for_unit("oncache.service")
    host.succeed("oncache container add web")
daemon = alpha.get_unit_property("oncache.service", "MainPID")
beta.succeed("ip netns exec web iperf3 --server --daemon")
client = "ip netns exec web iperf3 --client 10.42.2.2 --time 120 --bitrate 5M"
alpha.succeed(f"{client} >/tmp/stream 2>&1 & echo $! >/tmp/pid")
retry(lambda _: hits(beta) > 100, 60)

with subtest("the cable is pulled"):
    beta.block()
    alpha.succeed("sleep 2")
    alpha.fail("ip netns exec web ping -c 2 -W 1 10.42.2.2")

with subtest("and put back: the same flow goes on"):
    beta.unblock()
    alpha.wait_until_succeeds("ip netns exec web ping -c 1 -W 2 10.42.2.2", timeout=60)
    alpha.succeed("kill -0 $(cat /tmp/pid)")
    before = hits(beta)
    retry(lambda _: hits(beta) > before + 100, 60)
    print(f"fast packets since the cable is back: {hits(beta) - before}")
    assert alpha.get_unit_property("oncache.service", "MainPID") == daemon
