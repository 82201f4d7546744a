//! The only place that speaks rtnetlink.
