//! The VM suite: real machines with systemd and cgroup v2, on which skiff is installed the way that a person installs it.
//!
//! `make vm-test` runs it. The machines run under QEMU without acceleration, in a network namespace without a way out. Their disks
//! are copy-on-write over one image, which `packaging/image.sh` makes. The steps come one after another on the same machines,
//! since a machine's start is most of what the suite takes; the first that fails ends it, and prints what a person would look at
//! first. One thread; each machine is a child process.
#![allow(clippy::disallowed_types)] // No time is paused here: the machines' clocks are real.

mod cluster;
mod lab;
mod machine;
mod readme;
mod steps;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};

use crate::cluster::Cluster;
use crate::lab::{Lab, Sources};

/// Runs the VM suite.
#[derive(Debug, Parser)]
struct Arguments {
    /// How much of it
    form: Form,
    /// The directory that packaging/image.sh has filled
    #[arg(long, default_value = "target/vm/image")]
    image: PathBuf,
    /// The package to install
    #[arg(long)]
    package: PathBuf,
    /// The file with the path for three machines; the user's guide is in `docs` beside it
    #[arg(long, default_value = "README.md")]
    readme: PathBuf,
    /// Put crun in runc's place, as the user's guide says
    #[arg(long)]
    crun: bool,
    /// Leave the machines running when a step fails, until the suite gets a line or the end of its input
    #[arg(long)]
    hold: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Form {
    /// One machine
    Alone,
    /// One master, one worker: for every change
    Short,
    /// One master, two workers, and their failures
    Full,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let begin = Instant::now();
    match run(&arguments) {
        Ok(()) => {
            println!("the VM suite has passed in {:.0} s", begin.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!(
                "the VM suite has failed after {:.0} s: {error:#}",
                begin.elapsed().as_secs_f64()
            );
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let sources = Sources {
        image: arguments.image.clone(),
        package: arguments.package.clone(),
    };
    let workers = match arguments.form {
        Form::Alone => 0,
        Form::Short => 1,
        Form::Full => 2,
    };
    let readme = readme::Path::read(&arguments.readme)?;
    let names: Vec<String> = (1..=workers).map(|number| format!("worker-{number}")).collect();
    let names = [&["master".to_owned()], &names[..]].concat();
    let mut cluster = Cluster::new(
        Lab::start(&sources, &names)?,
        readme,
        arguments.readme.with_file_name("docs"),
    );
    let result = steps::run(&mut cluster, arguments.form, arguments.crun);
    if result.is_err() {
        eprintln!("{}", cluster.lab.report());
        if arguments.hold {
            eprintln!("held: {}", cluster.lab.how_to_look());
            std::io::stdin().read_line(&mut String::new()).ok();
        }
    }
    result
}
