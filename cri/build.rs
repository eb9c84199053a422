//! Compiles the restated protocols with protox, so that no machine needs `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
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
