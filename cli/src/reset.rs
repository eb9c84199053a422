//! `skiff reset`: this machine stops being a node.

use std::io::{IsTerminal as _, Write as _};

use clap::Args;
use skiff_machine::reset::{self, Wish};

use crate::args::{Output, OutputArgs};
use crate::machine::{Lines, print_json, this_machine};

/// `skiff reset` flags.
#[derive(Args, Debug)]
pub(crate) struct ResetArgs {
    /// Do not ask
    #[arg(long, short)]
    force: bool,
    /// Delete people's volumes on this machine too
    #[arg(long)]
    purge_data: bool,
    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Undoes `init` or `join`.
pub(crate) async fn run(args: ResetArgs) -> anyhow::Result<()> {
    let lines = Lines(args.output.output);
    let wish = Wish {
        purge_data: args.purge_data,
    };
    if args.dry_run {
        let steps = reset::dry_run(&this_machine(&lines)?, wish)?;
        return match args.output.output {
            Output::Json => print_json(&steps),
            Output::Text => Ok(()),
        };
    }
    if !args.force && !confirm(args.purge_data)? {
        anyhow::bail!("nothing was changed");
    }
    let report = reset::reset(&this_machine(&lines)?, wish).await?;
    if args.output.output == Output::Json {
        print_json(&report)?;
    }
    for kept in &report.kept {
        eprintln!(
            "kept, since it holds people's data: {} (skiff reset --purge-data deletes it)",
            kept.display()
        );
    }
    for other in &report.others {
        eprintln!("kept, since skiff did not make it: {}", other.display());
    }
    anyhow::ensure!(
        report.left.is_empty(),
        "not everything could be undone; mend this, then run `skiff reset` again:\n  {}",
        report.left.join("\n  ")
    );
    if args.output.output == Output::Text {
        println!(
            "\nThis machine is no node any more. If its cluster lives on, remove it there: kubectl delete node NAME"
        );
    }
    Ok(())
}

fn confirm(purge_data: bool) -> anyhow::Result<bool> {
    anyhow::ensure!(
        std::io::stdin().is_terminal(),
        "this deletes the node; say so with --force where nobody can be asked"
    );
    let data = if purge_data {
        ", and ALL DATA of its volumes"
    } else {
        ""
    };
    eprint!(
        "This ends all pods of this machine and deletes its certificates, its configuration{data}; on its only control plane, the whole cluster. Go on? [y/N]: "
    );
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}
