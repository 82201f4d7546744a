# What a host's other programs must know of oncache, as data: one text for NixOS (module.nix) and for
# every other distribution (reference.nix). Builtins only.
#
# Not here, because oncache sets it itself or leaves it alone on purpose (src/slow_path/own/sysctl.rs):
# forwarding of its own devices, conntrack's settings; rp_filter, whose strict mode the overlay passes.
rec {
  # oncache's own devices (src/slow_path/own/names.rs, src/container/devices.rs).
  bridge = "oncache0";
  vxlan = "oncache-vx0";
  room = "oncache-room0";
  devices = [
    bridge
    vxlan
    room
    # The containers' host-side ends; the second form stands for names that don't fit.
    "onc-*"
    "onc_*"
  ];

  # What the kernel would load on demand, here for hosts that lock that (security.lockKernelModules), and
  # for those that probe before: nf_conntrack has the setting that oncache looks for. nf_conntrack_bridge lets the
  # network policy judge packets between containers of one host.
  kernelModules = [
    "bridge"
    "cls_bpf"
    "nf_conntrack"
    "nf_conntrack_bridge"
    "nf_tables"
    "nft_chain_nat"
    "nft_ct"
    "nft_fib_inet"
    "nft_masq"
    "nft_meta_bridge"
    "sch_ingress"
    "veth"
    "vxlan"
  ];

  # Nobody but oncache gives its devices addresses, routes or masters.
  networkd = {
    Match.Name = builtins.concatStringsSep " " devices;
    Link.Unmanaged = true;
  };

  # udev would give devices a MAC address of its own (99-default.link, MACAddressPolicy=persistent) unless
  # the kernel says that somebody has set it; they are known to the peers and to the caches.
  link = {
    Match.OriginalName = builtins.concatStringsSep " " devices;
    Link.MACAddressPolicy = "none";
  };

  # networkd removes routes that it does not know from the devices it manages, the underlay's among them,
  # whenever it is restarted.
  networkdSettings.Network.ManageForeignRoutes = false;

  # NetworkManager's form of the same.
  networkManager = map (device: "interface-name:${device}") devices;
}
