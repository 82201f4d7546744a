//! Hosts, containers, wires, traffic and captures for tests, made of network namespaces.
