# The daemon is killed, and hangs, under traffic: the service manager brings it back, and no packet is lost meanwhile.
import json

start_all()
for host in (alpha, beta):
    host.wait_for_unit("oncache.service")
    host.succeed("oncache container add web")


def pid():
    return alpha.get_unit_property("oncache.service", "MainPID")


def lossless(what, kill, timeout):
    """Pings ten times a second while `kill` is done to the daemon and until another one is ready."""
    old = pid()
    alpha.succeed("ip netns exec web ping -q -i 0.1 10.42.2.2 >/tmp/ping 2>&1 & echo $! >/tmp/pid; sleep 1")
    alpha.succeed(kill)
    retry(lambda _: pid() not in (old, "0"), timeout)
    alpha.wait_for_unit("oncache.service", timeout=120)
    alpha.succeed("sleep 1; kill -INT $(cat /tmp/pid); sleep 1")
    result = alpha.succeed("grep transmitted /tmp/ping").strip()
    print(f"{what}: {result}")
    sent, received = int(result.split()[0]), int(result.split()[3])
    # The last one may be on its way.
    assert sent >= 5 and received >= sent - 1, result
    assert json.loads(alpha.succeed("oncache status --json"))["containers"], "the container is forgotten"


alpha.succeed("ip netns exec web ping -c 1 -W 10 10.42.2.2")
with subtest("killed"):
    lossless("killed", "systemctl kill --signal KILL oncache.service", 60)

with subtest("hanging: the watchdog notices"):
    lossless("hanging", "kill -STOP $(systemctl show -P MainPID oncache.service)", 120)
    alpha.succeed("journalctl --unit oncache --no-pager | grep -i 'watchdog timeout'")

with subtest("restarted"):
    lossless("restarted", "systemctl restart oncache.service", 60)

with subtest("reloaded"):
    old = pid()
    alpha.succeed("systemctl reload oncache.service")
    assert pid() == old
