//! Compiles the restated protocols with protox, so that no machine needs `protoc`, and the pause program.

use std::error::Error;
use std::path::Path;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=pause");
    compile_protocols()?;
    compile_pause(Path::new(&std::env::var("OUT_DIR")?))
}

fn compile_protocols() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(
        [
            "runtime.proto",
            "containerd/types.proto",
            "containerd/events.proto",
            "containerd/task.proto",
            "containerd/content.proto",
            "containerd/images.proto",
            "containerd/leases.proto",
            "containerd/snapshots.proto",
            "containerd/diff.proto",
        ],
        ["proto"],
    )?;
    tonic_prost_build::configure()
        .build_server(false)
        .btree_map(".")
        .bytes(".containerd.services.content")
        .include_file("protocols.rs")
        .compile_fds(descriptors)?;
    Ok(())
}

/// The pause program is a crate of its own without a C library; the compiler that builds us builds it.
fn compile_pause(out: &Path) -> Result<(), Box<dyn Error>> {
    let arguments = [
        "--edition=2024",
        "--crate-type=bin",
        "--crate-name=pause",
        "pause/pause.rs",
    ];
    let code = ["panic=abort", "opt-level=s", "relocation-model=static", "strip=symbols"];
    let link = ["-nostartfiles", "-nostdlib", "-static", "-Wl,--build-id=none"];
    let status = Command::new(std::env::var("RUSTC")?)
        .args(arguments)
        .args(["--target", &std::env::var("TARGET")?, "-o"])
        .arg(out.join("pause"))
        .args(code.iter().flat_map(|option| ["-C", option]))
        .args(
            link.iter()
                .flat_map(|option| ["-C".to_owned(), format!("link-arg={option}")]),
        )
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("the pause program does not compile: rustc {status}").into())
    }
}
