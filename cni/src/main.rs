//! `skiff-cni`: the CNI plugins in one small program, each by its own name: a node's CNI directory holds links to it named
//! `bridge`, `host-local`, `loopback` and `portmap`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&called)
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    skiff_cni::main_as(&name)
}
