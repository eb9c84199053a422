//! `skiff completion`: completion scripts.

use std::process::ExitCode;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::args::Cli;

/// `skiff completion` arguments.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  skiff completion bash > /usr/share/bash-completion/completions/skiff")]
pub(crate) struct CompletionArgs {
    /// The shell to complete for
    shell: Shell,
}

/// Prints the script to stdout.
pub(crate) fn print(args: &CompletionArgs) -> ExitCode {
    clap_complete::generate(args.shell, &mut Cli::command(), "skiff", &mut std::io::stdout());
    ExitCode::SUCCESS
}
