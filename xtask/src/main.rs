//! Developer commands of the repository: `cargo xtask`.
fn main() {}
