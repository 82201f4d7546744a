# A host loses its power under traffic and comes back; another is shut down in order and started. The unit brings the
# overlay up each time, containers can be added with what was stored, and flows are fast again.
import json


def stream():
    """Bytes of a short stream from alpha to beta, and the fast packets of it."""
    before = hits(alpha)
    report = json.loads(alpha.succeed("ip netns exec web iperf3 --client 10.42.2.2 --bytes 8M --json", timeout=120))
    return report["end"]["sum_received"]["bytes"], hits(alpha) - before


def hits(host):
    counters = json.loads(host.succeed("oncache stats --json"))["counters"]
    return sum(c["packets"] for c in counters if c["reason"] == "hit")


def ready(host):
    host.wait_for_unit("oncache.service")
    host.succeed("oncache container add web --ip " + ADDRESS[host.name])


ADDRESS = {"alpha": "10.42.1.2", "beta": "10.42.2.2"}

start_all()
for host in (alpha, beta):
    ready(host)
beta.succeed("ip netns exec web iperf3 --server --daemon")
print("before: %d bytes, %d fast packets" % stream())

with subtest("beta crashes under a stream, alpha does not mind"):
    alpha.succeed("ip netns exec web iperf3 --client 10.42.2.2 --time 600 >/dev/null 2>&1 & echo $! >/tmp/stream")
    # Written to the disk, so that it is there after the crash.
    beta.succeed("sleep 2; echo kept >/root/kept; sync")
    beta.crash()
    alpha.fail("ip netns exec web ping -c 2 -W 1 10.42.2.2")
    alpha.require_unit_state("oncache.service")
    alpha.succeed("kill $(cat /tmp/stream)")
    alpha.succeed("oncache status")

with subtest("beta returns"):
    beta.start()
    beta.succeed("grep kept /root/kept")
    ready(beta)
    beta.succeed("ip netns exec web iperf3 --server --daemon")
    alpha.wait_until_succeeds("ip netns exec web ping -c 1 -W 2 10.42.2.2", timeout=60)
    moved, fast = stream()
    print(f"after the crash: {moved} bytes, {fast} fast packets")
    assert fast >= 100, fast

with subtest("alpha is shut down and started"):
    alpha.shutdown()
    beta.fail("ip netns exec web ping -c 2 -W 1 10.42.1.2")
    alpha.start()
    ready(alpha)
    alpha.wait_until_succeeds("ip netns exec web ping -c 1 -W 2 10.42.2.2", timeout=60)
    moved, fast = stream()
    print(f"after the reboot: {moved} bytes, {fast} fast packets")
    assert fast >= 100, fast
