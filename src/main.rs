//! argv to command; nothing else.

fn main() {}
