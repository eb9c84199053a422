//! `docs/commands.md`: every command and flag, written by the program itself so that the page cannot differ from it.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory as _};

use crate::args::Cli;

const HEAD: &str = "# Commands

Every command with its flags, as `--help` and the man pages (`man skiff`, `man skiff-init`, …) tell them. This page is written by the
program: `cargo run -p skiff-cli -- package --reference > docs/commands.md`; a test compares. `skiff completion bash|zsh|fish` prints
completions; the package installs them.

Exit codes: 0 done; 1 failed, the reason is on standard error; 2 the command line is wrong. With `--output json` the result is on
standard output and progress on standard error.
";

/// The flags that every command has: they stand once.
const EVERYWHERE: [&str; 2] = ["verbosity", "logging_format"];

/// The page.
pub(crate) fn page() -> String {
    let mut skiff = Cli::command();
    skiff.build();
    let mut page = HEAD.to_owned();
    let mut commands = Vec::new();
    collect(&skiff, "", &mut commands);
    page += "\n| command | what it does |\n| --- | --- |\n";
    for (name, command) in &commands[1..] {
        let anchor = name.replace(' ', "-");
        // Writing to a String cannot fail.
        writeln!(page, "| [`{name}`](#{anchor}) | {} |", about(command)).ok();
    }
    let (_, whole) = &commands[0];
    page += "\n## Flags of every command\n\n";
    flags(whole, &[], &mut page);
    for (name, command) in &commands[1..] {
        section(name, command, &mut page);
    }
    page
}

/// All that can be typed, outer commands first.
fn collect(command: &Command, within: &str, all: &mut Vec<(String, Command)>) {
    let name = format!("{within} {}", command.get_name()).trim().to_owned();
    all.push((name.clone(), command.clone()));
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    for inner in shown.filter(|command| command.get_name() != "help") {
        collect(inner, &name, all);
    }
}

fn section(name: &str, command: &Command, page: &mut String) {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim();
    writeln!(page, "\n## {name}\n\n{}.\n\n```\n{usage}\n```\n", about(command)).ok();
    flags(command, &EVERYWHERE, page);
    if let Some(help) = command.get_after_help() {
        writeln!(page, "\n```\n{help}\n```").ok();
    }
}

fn flags(command: &Command, told: &[&str], page: &mut String) {
    let shown = |arg: &&Arg| {
        let id = arg.get_id().as_str();
        !arg.is_hide_set() && !told.contains(&id) && !["help", "version"].contains(&id)
    };
    let all: Vec<_> = command.get_arguments().filter(shown).collect();
    if all.is_empty() {
        return;
    }
    *page += "| flag | |\n| --- | --- |\n";
    for arg in all {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        writeln!(page, "| `{}` | {}{} |", spelling(arg), text(&help), values(arg)).ok();
    }
}

fn spelling(arg: &Arg) -> String {
    let names = arg.get_value_names().into_iter().flatten();
    let value = match names.map(|name| name.as_str()).collect::<Vec<_>>().join(" ") {
        value if value.is_empty() => arg.get_id().as_str().to_uppercase(),
        value => value,
    };
    let takes = arg.get_action().takes_values();
    match (arg.get_short(), arg.get_long()) {
        (short, Some(long)) => {
            let short = short.map_or_else(String::new, |short| format!("-{short}, "));
            let value = if takes { format!(" {value}") } else { String::new() };
            format!("{short}--{long}{value}")
        }
        (Some(short), None) => format!("-{short}"),
        (None, None) => value,
    }
}

/// What can be given, and what holds when nothing is.
fn values(arg: &Arg) -> String {
    let mut told = String::new();
    if !arg.get_action().takes_values() {
        return told;
    }
    let possible = arg.get_possible_values();
    let possible: Vec<_> = possible.iter().map(|value| format!("`{}`", value.get_name())).collect();
    if !possible.is_empty() {
        write!(told, "; one of {}", possible.join(", ")).ok();
    }
    let defaults = arg.get_default_values().iter();
    let defaults: Vec<_> = defaults
        .map(|value| value.to_string_lossy())
        .filter(|text| !text.is_empty())
        .collect();
    if !defaults.is_empty() {
        write!(told, "; default `{}`", defaults.join(",")).ok();
    }
    if let Some(variable) = arg.get_env() {
        write!(told, "; or `${}`", variable.to_string_lossy()).ok();
    }
    told
}

fn about(command: &Command) -> String {
    text(&command.get_about().map(ToString::to_string).unwrap_or_default())
}

/// On one line, and without what a table would take for its own.
fn text(help: &str) -> String {
    help.replace('\n', " ").replace('|', "\\|").replace('<', "\\<")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docs_commands_md_is_what_the_program_says() {
        let written = include_str!("../../docs/commands.md");
        assert!(
            written == page(),
            "write it anew: cargo run -p skiff-cli -- package --reference > docs/commands.md"
        );
    }

    #[test]
    fn every_command_and_flag_is_on_the_page() {
        let page = page();
        for part in [
            "## skiff init\n",
            "| `--certificate-key KEY` |",
            "## skiff init phase upload-certs\n",
            "## skiff token create\n",
            "| `--ttl DURATION` | How long it is valid, 0 for ever; default `24h` |",
            "| `--kubeconfig FILE` | The kubeconfig to use [default: /etc/kubernetes/admin.conf]; or `$KUBECONFIG` |",
            "| `-o, --output FORMAT` | Output format; one of `text`, `json`; default `text` |",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        assert!(!page.contains("skiff package\n"));
    }
}
