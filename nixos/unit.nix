# The systemd units of oncache as data: one text for NixOS (module.nix) and for every other
# distribution (reference.nix). Builtins only, so that it can be read without nixpkgs.
{
  # The program, by an absolute path.
  program ? "/usr/local/sbin/oncache",
  # The configuration file.
  config ? "/etc/oncache/config.toml",
  # systemd before 253 (Debian 12) does not know Type=notify-reload.
  notifyReload ? true,
}:
let
  words = builtins.concatStringsSep " ";

  # What both units can have: they need root and the network, and no more of the machine.
  confinedBoth = {
    # A program run by the daemon (nft) never gains what the daemon has not.
    NoNewPrivileges = true;
    LockPersonality = true;
    # Programs are compiled by the kernel, not in the daemon's memory.
    MemoryDenyWriteExecute = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    # Each container is a network namespace that is made and entered; the mount namespace is the
    # host's, in which those namespaces have their names (see --mount-namespace).
    RestrictNamespaces = "mnt net";
    # AF_NETLINK: links, routes, nftables. AF_UNIX: the control socket and the service manager.
    # AF_INET, AF_INET6: what listens or connects by itself (the metrics' address).
    #
    # IPAddressDeny= is left alone: it is a program on the sockets of the unit's control group, and the
    # tunnel's socket is one of them, since the daemon makes the VXLAN device (net/core/sock.c,
    # `sk_alloc`). A rule meant for the daemon must not meet the containers' packets.
    RestrictAddressFamilies = words [
      "AF_UNIX"
      "AF_NETLINK"
      "AF_INET"
      "AF_INET6"
    ];
    SystemCallArchitectures = "native";
    # Besides what a service needs: `bpf` loads programs and reads maps; `mount` and `umount2` give
    # network namespaces their names. `chown`, of @privileged, gives the socket its group.
    SystemCallFilter = [
      "@system-service bpf mount umount2"
      "~@keyring @resources @setuid"
    ];
    # A call that is missing from the list fails with a reason in the log, and does not end the daemon.
    SystemCallErrorNumber = "EPERM";
    CapabilityBoundingSet = words [
      # Load programs, and what the verifier allows to whom it trusts: pointers in maps, bounded loops.
      "CAP_BPF"
      "CAP_PERFMON"
      # Links, routes, neighbours, nftables, tc; attach programs.
      "CAP_NET_ADMIN"
      # Enter network namespaces, mount their names, find maps and programs by their ids.
      "CAP_SYS_ADMIN"
      # Enter a mount namespace (fs/namespace.c, `mntns_install`).
      "CAP_SYS_CHROOT"
      # Open /proc/PID/ns/net of containers that may do more than the daemon (security/commoncap.c,
      # `cap_ptrace_access_check`), and /proc/1/ns/mnt.
      "CAP_SYS_PTRACE"
      # The group `oncache` may use the socket.
      "CAP_CHOWN"
      # A container's namespace may lie in a directory of its user's (/run/user/1000/netns).
      "CAP_DAC_READ_SEARCH"
    ];
  };
in
{
  "oncache.service" = {
    Unit = {
      Description = "oncache container overlay network";
      Documentation = "man:oncache(8)";
      # The underlay's address is needed. The firewall comes first: whoever loads a ruleset later makes
      # every flow be learned anew.
      Wants = [ "network-online.target" ];
      After = [
        "network-online.target"
        "nftables.service"
        "firewall.service"
        "systemd-modules-load.service"
        "systemd-sysctl.service"
      ];
      # Never gives up: an underlay that comes late is found by a later try.
      StartLimitIntervalSec = 0;
    };
    Service =
      confinedBoth
      // (
        if notifyReload then
          # Ready when the overlay stands; `systemctl reload` sends SIGHUP and waits for the end.
          { Type = "notify-reload"; }
        else
          {
            Type = "notify";
            ExecReload = "/bin/kill -HUP $MAINPID";
          }
      )
      // {
        NotifyAccess = "main";
        ExecStart = "${program} run --config ${config} --mount-namespace /proc/1/ns/mnt";
        # Not `always`: `oncache down` ends the daemon with status 0, and it shall stay away. 2 is a wrong
        # command line, which does not mend itself.
        Restart = "on-failure";
        RestartSec = 2;
        RestartPreventExitStatus = 2;
        # Fed by the loop that reconciles. One that hangs is killed, and the next one goes on from what is
        # pinned; packets do not notice.
        WatchdogSec = 30;
        # There is no ExecStop=: overlay and fast path stay when the daemon ends. oncache-down.service
        # removes them.
        #
        # An nft that is running gets its answer through.
        KillMode = "mixed";
        # Without the daemon, changes are noticed a lease later.
        OOMScoreAdjust = -900;
        StateDirectory = "oncache";
        RuntimeDirectory = "oncache";
        # /run/netns is made for everybody, if it is not there.
        UMask = "0022";

        # What is not open to it, and what is and why:
        # - User= is left alone: network namespaces of others, their mounts and pinned objects are root's.
        # - PrivateNetwork=, PrivateUsers=: the host's network is the daemon's work, and the kernel asks for
        #   capabilities of the first user namespace.
        # - ProcSubset=: /proc/sys/net. ProtectProc=: /proc/PID/ns/net of any container.
        # - RootDirectory=: `nft` and the libraries are the system's.
        PrivateDevices = true;
        PrivateMounts = true;
        PrivateTmp = true;
        ProtectClock = true;
        ProtectControlGroups = true;
        ProtectHome = true;
        ProtectHostname = true;
        ProtectKernelLogs = true;
        # The kernel loads what netlink asks for by itself.
        ProtectKernelModules = true;
        ProtectSystem = "strict";
        # In place of ProtectKernelTunables=, which makes the bpffs read-only, where programs and maps are
        # pinned, and lets nothing change that: it has an entry for it, and entries for one path are
        # merged to the stricter (src/core/namespace.c, `protect_kernel_tunables_sys_table` and
        # `drop_duplicates`). The paths are that table's and `protect_kernel_tunables_proc_table`'s; to be
        # written are the bpffs and the settings of devices and conntrack.
        ReadOnlyPaths = words [
          # `strict` leaves it open.
          "/run"
          "/sys"
          "/proc/sys"
          "-/proc/acpi"
          "-/proc/apm"
          "-/proc/asound"
          "-/proc/bus"
          "-/proc/fs"
          "-/proc/irq"
          "-/proc/latency_stats"
          "-/proc/mtrr"
          "-/proc/scsi"
          "-/proc/sysrq-trigger"
          "-/proc/timer_stats"
        ];
        InaccessiblePaths = words [
          "-/proc/kallsyms"
          "-/proc/kcore"
        ];
        ReadWritePaths = words [
          "/proc/sys/net"
          "/sys/fs/bpf"
        ];
      };
    Install.WantedBy = [ "multi-user.target" ];
  };

  # Removes the overlay. It starts only when it is asked for, and stops the daemon first.
  "oncache-down.service" = {
    Unit = {
      Description = "Remove the oncache overlay from this host";
      Documentation = "man:oncache(8)";
      Conflicts = [ "oncache.service" ];
      After = [ "oncache.service" ];
    };
    # The host's mount namespace itself, for the names of network namespaces: so none of what would give
    # it one of its own.
    Service = confinedBoth // {
      Type = "oneshot";
      ExecStart = "${program} down";
    };
  };

  # Gives a container its place in the overlay while the unit is up: a network namespace of its own at
  # /run/netns/NAME, with the device and the address. `owner`, a unit, is what runs in it.
  container =
    {
      name,
      address ? null,
      owner ? null,
    }:
    {
      Unit = {
        Description = "Container ${name} in the oncache overlay";
        Documentation = "man:oncache(8)";
        # Not Requires=: the container stays connected while the daemon restarts.
        Wants = [ "oncache.service" ];
        After = [ "oncache.service" ];
        StartLimitIntervalSec = 0;
      }
      // (
        if owner == null then
          { }
        else
          {
            # The namespace is there before its owner and goes after it; a restart of the owner, which
            # is what a new address takes, makes it anew.
            Before = [ owner ];
            PartOf = [ owner ];
          }
      );
      Service = {
        Type = "oneshot";
        RemainAfterExit = true;
        ExecStart =
          "${program} container add ${name}" + (if address == null then "" else " --ip ${address}");
        ExecStop = "${program} container del ${name}";
        # A daemon whose first start fails counts as started to those that come after it, though it
        # tries again: so does the container, until there is one.
        Restart = "on-failure";
        RestartSec = 2;
      };
      Install.WantedBy = [ "multi-user.target" ];
    };
}
