//! The types that oncache's eBPF programs and its daemon share, and the decisions both must take
//! alike: what an entry's words mean, what a mark says, when an entry is dead.
//!
//! Everything here is plain data and pure functions: no kernel helper, no allocation, so that the
//! rules of the data path are tested without a kernel. A change of any file in this crate changes
//! the ABI hash that names the pin directory (see the root `build.rs`), so maps of another layout
//! are never taken over.
#![no_std]

pub mod admission;
pub mod checksum;
pub mod container;
pub mod entry;
pub mod flow;
pub mod headers;
pub mod mark;
pub mod peer;
pub mod reason;
pub mod settings;
pub mod turnover;
pub mod vxlan;

/// Marks a type as plain data for aya, on the daemon's side only.
macro_rules! plain_data {
    ($($name:ty),+ $(,)?) => {$(
        // SAFETY: the type is `repr(C)` or `repr(transparent)`, holds integers only, and has no
        // implicit padding (asserted by its tests), so any bit pattern is a value of it.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    )+};
}
pub(crate) use plain_data;
