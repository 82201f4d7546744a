//! The test bed itself: that its hosts, captures and snapshots are what the other tests take them for.

mod by_hand;
mod capture;
mod daemon;
mod gone;
mod lab;
mod snapshot;
mod traffic;
