//! `skiff check`: how this machine does as a node.

use clap::Args;
use skiff_machine::check::{self, Health};

use crate::args::{Output, OutputArgs};
use crate::machine::{Lines, print_json, this_machine};

/// `skiff check` flags.
#[derive(Args, Debug)]
#[command(
    after_help = "The exit code is 0 when everything works. Of several faults the first is the one to mend first."
)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// Looks at every part; fails when one does not work.
pub(crate) async fn run(args: CheckArgs) -> anyhow::Result<()> {
    let lines = Lines(args.output.output);
    let parts = check::check(&this_machine(&lines)?).await?;
    match args.output.output {
        Output::Json => print_json(&parts)?,
        Output::Text => {
            for part in &parts {
                let mark = match part.health {
                    Health::Ok => "[+]",
                    Health::Warning => "[!]",
                    Health::Failed => "[-]",
                };
                println!("{mark} {}: {}", part.name, part.text);
            }
        }
    }
    let failed = parts.iter().filter(|part| part.health == Health::Failed).count();
    anyhow::ensure!(failed == 0, "{failed} of {} parts do not work", parts.len());
    Ok(())
}
