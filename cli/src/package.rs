//! `skiff package`: what a package holds beside the binary, made by the binary itself so that it cannot differ from it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::args::Cli;
use crate::reference;

/// Where each shell looks for what a package brings, below `share/`.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/skiff"),
    (Shell::Zsh, "zsh/vendor-completions/_skiff"),
    (Shell::Fish, "fish/vendor_completions.d/skiff.fish"),
];

/// `skiff package` arguments.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  skiff package target/package")]
pub(crate) struct PackageArgs {
    /// Where to write it: share/man, share/skiff/images, completions
    #[arg(required_unless_present = "reference")]
    directory: Option<PathBuf>,
    /// Print docs/commands.md instead
    #[arg(long)]
    reference: bool,
}

/// Writes man pages, completions and the archives of the images that every node needs.
pub(crate) fn write(args: &PackageArgs) -> anyhow::Result<()> {
    let Some(directory) = &args.directory else {
        print!("{}", reference::page());
        return Ok(());
    };
    let share = directory.join("share");
    man_pages(&made(share.join("man/man1"))?)?;
    for (shell, path) in COMPLETIONS {
        let path = share.join(path);
        made(path.parent().unwrap_or(&share).to_owned())?;
        let mut file = create(&path)?;
        clap_complete::generate(shell, &mut Cli::command(), "skiff", &mut file);
    }
    let pause = made(share.join("skiff/images"))?.join("pause.tar");
    skiff_cri::pause::write_archive(create(&pause)?).with_context(|| format!("write {}", pause.display()))?;
    Ok(())
}

/// One page for `skiff`, and one for each command that `skiff help` shows.
fn man_pages(directory: &Path) -> anyhow::Result<()> {
    clap_mangen::generate_to(Cli::command(), directory)
        .with_context(|| format!("write man pages to {}", directory.display()))
}

fn made(directory: PathBuf) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    Ok(directory)
}

fn create(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_its_completion() {
        let directory = tempfile::tempdir().unwrap();
        write(&PackageArgs {
            directory: Some(directory.path().to_owned()),
            reference: false,
        })
        .unwrap();
        let share = directory.path().join("share");
        for command in Cli::command()
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
        {
            let page = share.join(format!("man/man1/skiff-{}.1", command.get_name()));
            let text = fs::read_to_string(&page).unwrap();
            assert!(
                text.contains(".SH OPTIONS") || text.contains(".SH SUBCOMMANDS"),
                "{page:?}"
            );
        }
        for (_, path) in COMPLETIONS {
            assert!(fs::read_to_string(share.join(path)).unwrap().contains("kubelet"));
        }
        assert!(share.join("skiff/images/pause.tar").metadata().unwrap().len() > 1000);
    }
}
