//! What carries a network's packets without the caches.

pub mod own;
