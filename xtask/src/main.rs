//! Developer commands of the repository: `cargo xtask`.

mod check;
mod schema;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Developer commands of the repository")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check the rules of the house: lints inherited, no mod.rs, file sizes, direction of dependencies
    Check,
    /// Write api/schema/*.json from Kubernetes' Go sources
    Schema {
        /// Folder that holds `k8s.io/`: where the golang-k8s-*-dev packages are unpacked
        facts: PathBuf,
    },
}

fn main() -> ExitCode {
    let root = repository();
    let result = match Cli::parse().command {
        Command::Check => check::run(&root),
        Command::Schema { facts } => schema::run(&facts, &root.join("api/schema")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The folder above this crate's; cargo says at run time where that is, which a copied build may not know.
fn repository() -> PathBuf {
    let mut path =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    path.pop();
    path
}
