//! What runs at a hook, a module a program. Each is generic over the inner packets' family and the tunnel.

pub mod egress;
pub mod egress_init;
pub mod ingress;
pub mod ingress_init;
