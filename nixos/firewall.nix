# What NixOS's firewall must know of oncache, as text for either of its backends. Builtins only.
{
  # services.oncache.settings
  settings,
  # Let VXLAN in, from the peers.
  open ? false,
  # The firewall filters by the reverse path.
  reversePath ? false,
  # The firewall refuses to forward what it is not told of (nftables alone).
  forward ? false,
  # Containers reach the outside.
  outside ? false,
}:
let
  host = import ./host.nix;
  inherit (settings) overlay;
  peers = settings.peers or [ ];
  port = toString (overlay.port or 4789);
  lines = list: builtins.concatStringsSep "" (map (line: "${line}\n") list);
  when = condition: list: if condition then list else [ ];

  # The rpfilter chain drops at prerouting what it finds no route back for, trusted interfaces or not. The
  # overlay's routes are such that it passes; but the look-up is by the packet's mark as well, and a rule of
  # somebody's policy routing may take the mark, or any address, for its own. Then the slow path loses the
  # packet, and no flow is ever learned. What comes by oncache's devices from where it must come from is
  # therefore told apart before: no more than the main table's routes would let through.
  origins = [
    {
      device = host.bridge;
      inherit (overlay) subnet;
    }
  ]
  ++ map (peer: {
    device = host.vxlan;
    inherit (peer) subnet;
  }) peers;
in
{
  # For networking.firewall.extraInputRules, extraReversePathFilterRules, extraForwardRules.
  nftables = {
    input = lines (
      map (
        peer: ''ip saddr ${peer.address} udp dport ${port} accept comment "oncache: VXLAN of ${peer.name}"''
      ) (when open peers)
    );
    reversePath = lines (
      map (
        origin: ''iifname "${origin.device}" ip saddr ${origin.subnet} accept comment "oncache"''
      ) (when reversePath origins)
    );
    # oncache's own table has the same; but an accept ends its own table only.
    forward = lines (
      when forward [
        ''iifname "${host.bridge}" oifname "${host.vxlan}" accept comment "oncache"''
        ''iifname "${host.vxlan}" oifname "${host.bridge}" accept comment "oncache"''
      ]
      ++ when (forward && outside) [
        ''iifname "${host.bridge}" oifname "${settings.node.underlay}" accept comment "oncache: to the outside"''
      ]
    );
  };

  # For networking.firewall.extraCommands. The chains are made anew at each start and reload, so that
  # nothing is left to undo.
  iptables = lines (
    map (peer: "iptables -w -A nixos-fw -s ${peer.address} -p udp --dport ${port} -j nixos-fw-accept") (
      when open peers
    )
    # Where the kernel lacks the match there is no such chain.
    ++ when reversePath (
      [ "if iptables -w -t mangle -n -L nixos-fw-rpfilter >/dev/null 2>&1; then" ]
      ++ map (
        origin: "  iptables -w -t mangle -I nixos-fw-rpfilter -i ${origin.device} -s ${origin.subnet} -j RETURN"
      ) origins
      ++ [ "fi" ]
    )
  );
}
