//! `skiff image`: archives into nodes, and small archives out of files; no registry is needed.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use skiff_cluster::Cluster;
use skiff_cri::archive::Builder;
use skiff_cri::images::{self, Options};
use skiff_cri::{Client, Execution};

use crate::cluster::HomeArgs;

/// `skiff image` arguments.
#[derive(Args, Debug)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Import archives (OCI layout or `docker save`), into a cluster of this machine or a container runtime
    #[command(after_help = "Examples:
  skiff image import --name dev app.tar
  skiff image import --container-runtime-endpoint unix:///run/containerd/containerd.sock app.tar")]
    Import(ImportArgs),
    /// Make an archive from files
    #[command(after_help = "Example:
  skiff image build --tag example.local/tool:1 --file /bin/tool=./tool --entrypoint /bin/tool --output tool.tar")]
    Build(BuildArgs),
}

#[derive(Args, Debug)]
struct ImportArgs {
    /// The cluster of this machine whose nodes get the images
    #[arg(long, default_value = "skiff", value_name = "NAME")]
    name: String,
    #[command(flatten)]
    home: HomeArgs,
    /// Import into this container runtime instead
    #[arg(long, value_name = "URL")]
    container_runtime_endpoint: Option<String>,
    /// The archives
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

#[derive(Args, Debug)]
struct BuildArgs {
    /// The image's name
    #[arg(long, short, value_name = "IMAGE")]
    tag: String,
    /// A file of the image and where it comes from; its mode is kept
    #[arg(long = "file", value_name = "PATH=SOURCE", value_parser = pair)]
    files: Vec<(String, String)>,
    /// A directory of the image and its mode
    #[arg(long = "directory", value_name = "PATH=MODE", value_parser = pair)]
    directories: Vec<(String, String)>,
    /// A symbolic link of the image and what it points to
    #[arg(long = "symlink", value_name = "PATH=TARGET", value_parser = pair)]
    symlinks: Vec<(String, String)>,
    /// An environment variable
    #[arg(long = "env", value_name = "NAME=VALUE")]
    environment: Vec<String>,
    /// The program to run; repeat for its fixed arguments
    #[arg(long, value_name = "ARGUMENT")]
    entrypoint: Vec<String>,
    /// Its default arguments
    #[arg(long, value_name = "ARGUMENT")]
    cmd: Vec<String>,
    /// Where to write the archive
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
}

/// `skiff image`.
pub(crate) async fn run(args: ImageArgs) -> anyhow::Result<()> {
    match args.command {
        ImageCommand::Import(args) => import(args).await,
        ImageCommand::Build(args) => build(args),
    }
}

async fn import(args: ImportArgs) -> anyhow::Result<()> {
    let endpoints = match args.container_runtime_endpoint {
        Some(endpoint) => vec![endpoint],
        None => Cluster::open(&args.home.home, &args.name)?
            .nodes()
            .iter()
            .map(|node| format!("unix://{}", node.containerd_socket().display()))
            .collect(),
    };
    for endpoint in endpoints {
        let client = Client::new(&endpoint);
        for file in &args.files {
            for name in import_file(&client, file).await? {
                println!("{name}");
            }
        }
    }
    Ok(())
}

/// Imports every archive of a directory; one that is broken is told and left out.
pub(crate) async fn import_directory(client: &Client, directory: &Path) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    for file in files.iter().filter(|file| file.is_file()) {
        match import_file(client, file).await {
            Ok(names) => tracing::info!(file = %file.display(), images = names.join(" "), "imported"),
            Err(error) => tracing::error!(
                error = skiff_daemon::error_chain(error.as_ref()),
                "image archive left out"
            ),
        }
    }
    Ok(())
}

async fn import_file(client: &Client, path: &Path) -> anyhow::Result<Vec<String>> {
    let failed = || format!("import {}", path.display());
    let archive = File::open(path).with_context(failed)?;
    let imported = images::import(client, archive, Options { pinned: true })
        .await
        .with_context(failed)?;
    Ok(imported.into_iter().map(|image| image.name).collect())
}

fn build(args: BuildArgs) -> anyhow::Result<()> {
    let execution = Execution {
        entrypoint: args.entrypoint,
        cmd: args.cmd,
        env: args.environment,
        ..Execution::default()
    };
    let mut image = Builder::new(&args.tag).execution(execution);
    for (path, mode) in &args.directories {
        let mode = u32::from_str_radix(mode, 8).with_context(|| format!("{mode:?} is not an octal mode"))?;
        image = image.directory(path, mode);
    }
    for (path, source) in &args.files {
        let mode = std::fs::metadata(source)
            .with_context(|| format!("read {source}"))?
            .permissions()
            .mode()
            & 0o7777;
        image = image.file(path, mode, source);
    }
    for (path, target) in &args.symlinks {
        image = image.link(path, target);
    }
    let output = File::create(&args.output).with_context(|| format!("create {}", args.output.display()))?;
    let digest = image
        .write(output)
        .with_context(|| format!("write {}", args.output.display()))?;
    println!("{} {digest}", args.tag);
    Ok(())
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (first, second) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not of the form A=B"))?;
    Ok((first.to_owned(), second.to_owned()))
}
