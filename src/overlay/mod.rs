//! The slow path: VXLAN device, bridge, routes, neighbours and FDB to peers, nftables.
