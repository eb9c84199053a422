//! How the release binary is linked.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    // Rust's own linker knows both flags; elsewhere the platform's links, and need not.
    if is("PROFILE", "release") && is("TARGET", "x86_64-unknown-linux-gnu") {
        // Relocations of a position-independent binary take a tenth of the room this way; glibc knows it since 2.36.
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        // Generic code that came out the same for several types stands once.
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
    }
}
