//! The types that oncache's eBPF programs and its daemon share.
#![no_std]
