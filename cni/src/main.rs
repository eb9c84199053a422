//! The plugins without the rest of `skiff`: what the tests of this crate execute. An installation links to `skiff` itself.

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
