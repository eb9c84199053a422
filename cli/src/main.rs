//! The `skiff` binary: parses, wires, exits; decides nothing.

mod args;
mod backup;
mod certs;
mod check;
mod client;
mod cluster;
mod completion;
#[cfg(test)]
mod documents;
mod image;
mod ingress;
mod init;
mod join;
mod kubelet;
mod machine;
mod package;
mod proxy;
mod reference;
mod reset;
mod server;
mod showcase;
mod token;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Cli, Command};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let logs = cli.logs.options();
    match cli.command {
        Command::Server(args) => skiff_daemon::run("skiff-server", logs, |shutdown| server::run(args, shutdown)),
        Command::Kubelet(args) => skiff_daemon::run("skiff-kubelet", logs, |shutdown| kubelet::run(args, shutdown)),
        Command::Proxy(args) => skiff_daemon::run("skiff-proxy", logs, |shutdown| proxy::run(*args, shutdown)),
        Command::Ingress(args) => skiff_daemon::run("skiff-ingress", logs, |shutdown| ingress::run(args, shutdown)),
        Command::Init(args) => skiff_daemon::run("skiff", logs, |shutdown| init::run(*args, shutdown)),
        Command::Join(args) => skiff_daemon::run("skiff", logs, |shutdown| join::run(*args, shutdown)),
        Command::Reset(args) => skiff_daemon::run_command("skiff", logs, reset::run(args)),
        Command::Certs(args) => skiff_daemon::run_command("skiff", logs, certs::run(args)),
        Command::Check(args) => skiff_daemon::run_command("skiff", logs, check::run(args)),
        Command::Token(args) => skiff_daemon::run_command("skiff", logs, token::run(args)),
        Command::Up(args) => skiff_daemon::run("skiff", logs, |shutdown| cluster::up(args, shutdown)),
        Command::Down(args) => skiff_daemon::run_command("skiff", logs, cluster::down(args)),
        Command::Clusters(args) => skiff_daemon::run_command("skiff", logs, cluster::list(args)),
        Command::Kubeconfig(args) => skiff_daemon::run_command("skiff", logs, cluster::kubeconfig(args)),
        Command::Node(args) => cluster::node(args),
        Command::Image(args) => skiff_daemon::run_command("skiff", logs, image::run(args)),
        Command::Backup(args) => skiff_daemon::run_command("skiff", logs, backup::save(args)),
        Command::Restore(args) => skiff_daemon::run_command("skiff", logs, backup::restore(args)),
        Command::Version(args) => args::version(&args),
        Command::Completion(args) => completion::print(&args),
        Command::Package(args) => skiff_daemon::run_command("skiff", logs, async move { package::write(&args) }),
    }
}
