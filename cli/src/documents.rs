//! What people read says nothing that the program does not understand: every command line and every flag in the documents is one
//! that there is.

use clap::{Arg, Command, CommandFactory as _};

use crate::args::Cli;

/// A document's name and text.
const DOCUMENTS: [(&str, &str); 10] = [
    ("README.md", include_str!("../../README.md")),
    ("docs/README.md", include_str!("../../docs/README.md")),
    ("docs/backup.md", include_str!("../../docs/backup.md")),
    ("docs/certificates.md", include_str!("../../docs/certificates.md")),
    ("docs/coming-from.md", include_str!("../../docs/coming-from.md")),
    ("docs/commands.md", include_str!("../../docs/commands.md")),
    ("docs/concepts.md", include_str!("../../docs/concepts.md")),
    ("docs/control-planes.md", include_str!("../../docs/control-planes.md")),
    ("docs/quick-start.md", include_str!("../../docs/quick-start.md")),
    ("docs/troubleshooting.md", include_str!("../../docs/troubleshooting.md")),
];

/// The text of code in a document: blocks line by line, and what stands between backticks.
fn code(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, part) in text.split("```").enumerate() {
        if number % 2 == 1 {
            // The first line names the language.
            let whole = part.replace("\\\n", " ");
            found.extend(whole.lines().skip(1).map(str::to_owned));
        } else {
            let inline = part.split('`').skip(1).step_by(2);
            found.extend(inline.map(|code| {
                code.replace("\\|", "|")
                    .split_whitespace()
                    .collect::<Vec<_>>()
                    .join(" ")
            }));
        }
    }
    found
}

/// The commands in a line of code that run `skiff`: their words after it.
fn commands(line: &str) -> Vec<Vec<String>> {
    let line = line.split(" #").next().unwrap_or_default();
    let parts = line.split(['|', ';', '&', '(', ')', '\'', '"']);
    let words = parts.map(|part| part.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let skiff = |words: Vec<String>| {
        let mut words = words.into_iter().skip_while(|word| word == "sudo");
        (words.next()? == "skiff").then(|| words.collect())
    };
    words.filter_map(skiff).collect()
}

/// What the program would not understand of these words; values are not looked at.
fn unknown(skiff: &Command, words: &[String]) -> Option<String> {
    let everywhere: Vec<Arg> = skiff.get_arguments().cloned().collect();
    let mut command = skiff;
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        // What stands for something, in a usage; and the commands of others.
        if word == "--" || word == "…" {
            return None;
        }
        if word.starts_with(['[', '<']) {
            continue;
        }
        let Some(flag) = word.strip_prefix('-') else {
            if let Some(inner) = command.find_subcommand(word) {
                command = inner;
            } else if command.get_positionals().next().is_none() {
                return Some(word.clone());
            }
            continue;
        };
        let (name, value) = flag
            .split_once('=')
            .map_or((flag, None), |(name, value)| (name, Some(value)));
        let is_it = |arg: &&Arg| match name.strip_prefix('-') {
            Some(long) => arg.get_long() == Some(long),
            None => arg.get_short().is_some_and(|short| short.to_string() == name),
        };
        let Some(arg) = command.get_arguments().chain(&everywhere).find(is_it) else {
            return Some(word.clone());
        };
        let takes = arg.get_action().takes_values() && value.is_none();
        words.next_if(|next| takes && !next.starts_with('-'));
    }
    None
}

fn program() -> Command {
    let mut skiff = Cli::command();
    skiff.build();
    skiff
}

#[test]
fn every_command_line_can_be_typed() {
    let skiff = program();
    let mut seen = 0;
    for (document, text) in DOCUMENTS {
        for line in code(text) {
            for words in commands(&line) {
                assert_eq!(unknown(&skiff, &words), None, "{document}: {line}");
                seen += 1;
            }
        }
    }
    assert!(seen > 100, "{seen} command lines");
}

#[test]
fn a_mistake_would_be_found() {
    let skiff = program();
    for (line, wanted) in [
        ("sudo skiff inti", Some("inti")),
        ("skiff init --dry-rum", Some("--dry-rum")),
        ("skiff init --node-name a b", Some("b")),
        ("export KUBECONFIG=$(skiff kubeconfig --nmae dev)", Some("--nmae")),
        ("apt-get install x && skiff reset -q", Some("-q")),
        ("skiff reset -f", None),
        ("skiff token create --ttl=1h # for ever", None),
        ("skiff node exec node-1 -- ip route --whatever", None),
        ("skiff init --pod-network-cidr --service-cidr", None),
    ] {
        let commands = commands(line);
        assert_eq!(commands.len(), 1, "{line}");
        assert_eq!(unknown(&skiff, &commands[0]).as_deref(), wanted, "{line}");
    }
    assert_eq!(code("a `b\nc` d\n```sh\ne \\\n  f\n```\n`g`"), ["b c", "e    f", "g"]);
}
