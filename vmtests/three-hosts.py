# Three hosts, traffic from each to each in both directions: every pair by the fast path, and the wire between two
# hosts is no business of the third.
import json

ADDRESS = {"alpha": "10.42.1.2", "beta": "10.42.2.2", "gamma": "10.42.3.2"}
ROUNDS = 960


def hits(host):
    counters = json.loads(host.succeed("oncache stats --json"))["counters"]
    return {c["program"]: c["packets"] for c in counters if c["reason"] == "hit"}


start_all()
hosts = [alpha, beta, gamma]
for host in hosts:
    host.wait_for_unit("oncache.service")
    host.succeed("oncache container add web", "ip netns exec web iperf3 --server --daemon")
    host.succeed("ip netns exec web udp-rounds answer >/dev/null 2>&1 &")
    host.wait_until_succeeds("ip netns exec web ss -Hlun sport = :7000 | grep 7000", timeout=60)

for client in hosts:
    for server in hosts:
        if client is server:
            continue
        with subtest(f"{client.name} to {server.name}"):
            before = hits(client), hits(server)
            report = json.loads(
                client.succeed(f"ip netns exec web iperf3 --client {ADDRESS[server.name]} --bytes 8M --json")
            )
            after = hits(client), hits(server)
            moved = report["end"]["sum_received"]["bytes"]
            out = after[0].get("egress", 0) - before[0].get("egress", 0)
            into = after[1].get("ingress", 0) - before[1].get("ingress", 0)
            print(f"{client.name} to {server.name}: {moved} bytes, fast packets: {out} sent, {into} received")
            # The server counts until the client says that it is done, not until all is there.
            assert moved > 4 << 20, moved
            # An aggregate has 64 KB at most.
            assert out >= 100 and into >= 100, f"not by the fast path: {out} sent, {into} received"
            came = int(client.succeed(f"ip netns exec web udp-rounds ask {ADDRESS[server.name]} {ROUNDS}"))
            print(f"{client.name} to {server.name}: {came} of {ROUNDS} round trips")
            assert came == ROUNDS, f"{ROUNDS - came} of {ROUNDS} round trips lost"
