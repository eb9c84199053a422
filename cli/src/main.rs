//! The `skiff` binary: parses, wires, exits; decides nothing.
fn main() {}
