//! How the release binary is linked.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=no-unwinding.ld");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    // Rust's own linker knows both flags; elsewhere the platform's links, and need not.
    if is("PROFILE", "release") && is("TARGET", "x86_64-unknown-linux-gnu") {
        // Relocations of a position-independent binary take a tenth of the room this way; glibc knows it since 2.36.
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        // Generic code that came out the same for several types stands once.
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
        // A panic ends the process, and nobody unwinds the stack of a binary without symbols: a tenth of it goes.
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/no-unwinding.ld");
        println!("cargo:rustc-link-arg-bins=-Wl,--no-eh-frame-hdr,-T,{script}");
    }
}
