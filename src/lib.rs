//! oncache: a container overlay network with a cache-based eBPF fast path.
//!
//! The library face of the `oncache` binary, so that tests can use its pieces. The module tree is
//! the architecture (docs/architecture.md): arrows point down, from [`cli`] to the rims
//! [`netlink`], [`nft`] and [`datapath`], which know nothing of policy. The tests in `architecture/` say which
//! way is down.

pub mod allocator;
#[cfg(test)]
mod architecture;
pub mod cli;
pub mod coherence;
pub mod config;
pub mod container;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod log;
pub mod netlink;
pub mod network;
pub mod nft;
pub mod peers;
pub mod policy;
pub mod probe;
pub mod shown;
pub mod slow_path;
pub mod stable_hash;
pub mod state;
