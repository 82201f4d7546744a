# The hosts of the scenarios in vmtests/, on one underlay: name -> address and containers' subnet. For
# the NixOS machines (tests.nix) and, as files below reference/hosts/, for Debian's.
rec {
  network = "10.42.0.0/16";
  vni = 42;
  underlay = "eth1";

  hosts = {
    alpha = {
      address = "192.168.50.11";
      subnet = "10.42.1.0/24";
    };
    beta = {
      address = "192.168.50.12";
      subnet = "10.42.2.0/24";
    };
    gamma = {
      address = "192.168.50.13";
      subnet = "10.42.3.0/24";
    };
  };

  # services.oncache.settings of one of them. All the others are peers, started or not.
  settings =
    name:
    let
      own = hosts.${name};
      others = builtins.filter (other: other != name) (builtins.attrNames hosts);
    in
    {
      node = {
        inherit name underlay;
        inherit (own) address;
      };
      overlay = {
        inherit (own) subnet;
        inherit network vni;
        port = 4789;
      };
      peers = map (other: { name = other; } // hosts.${other}) others;
      cache.enabled = true;
    };
}
