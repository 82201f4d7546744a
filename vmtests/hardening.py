# The unit runs confined, and works: its capabilities are those that it was given, and systemd's own judgement is 3.5
# or better.
alpha.wait_for_unit("oncache.service")

with subtest("systemd's judgement"):
    print(alpha.succeed("systemd-analyze security --no-pager oncache.service | tail -1").strip())
    alpha.succeed("systemd-analyze security --no-pager --threshold=35 oncache.service >/dev/null")

with subtest("the daemon is confined"):
    status = alpha.succeed("cat /proc/$(systemctl show -P MainPID oncache.service)/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    capabilities = int(fields["CapEff"], 16)
    print(f"capabilities {capabilities:#x}, no new privileges {fields['NoNewPrivs']}, seccomp {fields['Seccomp']}")
    # CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_BOOT, CAP_SYS_TIME, CAP_MKNOD, CAP_SETUID.
    for forbidden in (16, 17, 22, 25, 27, 7):
        assert not capabilities & 1 << forbidden, f"has capability {forbidden}"
    assert fields["NoNewPrivs"] == "1" and fields["Seccomp"] == "2", fields
    alpha.fail("nsenter -t $(systemctl show -P MainPID oncache.service) -m touch /usr/written /etc/written")

with subtest("and has its fast path"):
    alpha.succeed("oncache container add web")
    alpha.fail("oncache status | grep -i 'fast path off'")
