//! `skiff backup` and `skiff restore`: a cluster's state to a file, and back.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use indicatif::ProgressBar;
use skiff_store::backup::{self, Place, Summary};

use crate::args::{Output, OutputArgs};
use crate::server::{EtcdArgs, config};

/// Which store.
#[derive(Args, Debug)]
struct StoreArgs {
    /// The server's file, which says where the store is
    #[arg(long, value_name = "FILE", default_value = "/etc/skiff/server.yaml")]
    config: PathBuf,

    /// The server's data directory, instead of what the file says
    #[arg(long, value_name = "DIR", conflicts_with = "etcd_servers")]
    data_dir: Option<PathBuf>,

    #[command(flatten)]
    etcd: EtcdArgs,
}

/// `skiff backup` flags.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  skiff backup /var/backups/skiff-$(date +%F)
  skiff backup state --etcd-servers https://10.0.0.1:2379 --etcd-cafile ca.crt --etcd-certfile c.crt --etcd-keyfile c.key

The file holds the cluster's Secrets. Keep the certificates and keys in /etc/kubernetes/pki with it.")]
pub(crate) struct BackupArgs {
    /// The file to write; an older backup of that name is replaced
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Save Events too
    #[arg(long)]
    events: bool,

    #[command(flatten)]
    store: StoreArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// `skiff restore` flags.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  systemctl stop skiff-server && skiff restore /var/backups/skiff-2026-11-21 --force && systemctl start skiff-server
  skiff restore state --data-dir /var/lib/skiff/server      also from etcd to SQLite, and back")]
pub(crate) struct RestoreArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Replace what is in the store
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    store: StoreArgs,

    #[command(flatten)]
    output: OutputArgs,
}

impl StoreArgs {
    fn place(self) -> anyhow::Result<Place> {
        if let Some(directory) = self.data_dir {
            return Ok(config::sqlite_in(&directory));
        }
        if let Some(etcd) = self.etcd.given() {
            return Ok(config::etcd_at(&etcd));
        }
        let help = "say where the store is: --config, --data-dir or --etcd-servers";
        Ok(config::place(&config::read(&self.config).context(help)?))
    }
}

/// Saves the state.
pub(crate) async fn save(args: BackupArgs) -> anyhow::Result<()> {
    let bar = bar("saving");
    let shown = bar.clone();
    let place = args.store.place()?;
    let saved = backup::save(&place, &args.file, args.events, move |done| shown.set_position(done)).await;
    bar.finish_and_clear();
    let summary = saved.context("make a backup")?;
    let file = args.file.display();
    match args.output.output {
        Output::Text => println!(
            "saved {} objects at revision {} to {file}",
            summary.objects, summary.revision
        ),
        Output::Json => println!("{}", json(&args.file, &summary)),
    }
    Ok(())
}

/// Puts a state back.
pub(crate) async fn restore(args: RestoreArgs) -> anyhow::Result<()> {
    let bar = bar("restoring");
    let shown = bar.clone();
    let place = args.store.place()?;
    let file = args.file.clone();
    let summary = tokio::task::spawn_blocking(move || backup::check(&file)).await?;
    let summary = summary.context("use the backup")?;
    let progress = move |done| shown.set_position(done);
    let restored = backup::restore(&args.file, &place, args.force, progress).await;
    bar.finish_and_clear();
    let revision = restored.context("restore the backup")?;
    match args.output.output {
        Output::Text => println!(
            "restored {} objects; the store goes on from revision {revision}",
            summary.objects
        ),
        Output::Json => {
            let mut value = json(&args.file, &summary);
            value["newRevision"] = revision.0.into();
            println!("{value}");
        }
    }
    Ok(())
}

fn json(file: &std::path::Path, summary: &Summary) -> serde_json::Value {
    serde_json::json!({
        "file": file, "revision": summary.revision.0, "objects": summary.objects, "bytes": summary.bytes, "sha256": summary.sha256,
    })
}

/// Counts objects on standard error, where that is a terminal.
fn bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::no_length();
    if let Ok(style) = indicatif::ProgressStyle::with_template("{spinner} {msg} {pos} objects") {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}
