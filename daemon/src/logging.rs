//! Logs on stderr: one line an event, filtered by level or by `RUST_LOG`.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// How log lines look; upstream's `--logging-format`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What to log and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogOptions {
    /// Upstream's `--v`: 0 to 1 logs information, 2 to 4 debugging, 5 and up traces.
    pub verbosity: u8,
    /// How lines look.
    pub format: LogFormat,
}

impl LogOptions {
    /// Starts logging for the whole process; a second call does nothing.
    ///
    /// Libraries that could log request headers or bodies stay at `warn` at every verbosity: no secret reaches a log.
    pub fn init(self) {
        let level = match self.verbosity {
            0..=1 => "info",
            2..=4 => "debug",
            _ => "trace",
        };
        let default = format!(
            // kube's own warnings of a refused watch never end; whoever watches tells of it.
            "warn,kube_runtime::watcher=error,{}",
            crates()
                .map(|name| format!("{name}={level}"))
                .collect::<Vec<_>>()
                .join(",")
        );
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
        let lines = fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        match self.format {
            LogFormat::Text => lines.try_init().ok(),
            LogFormat::Json => lines.json().try_init().ok(),
        };
    }
}

/// The house's own crates, as log targets.
fn crates() -> impl Iterator<Item = &'static str> {
    [
        "skiff",
        "skiff_api",
        "skiff_apiserver",
        "skiff_cluster",
        "skiff_cni",
        "skiff_controllers",
        "skiff_cri",
        "skiff_daemon",
        "skiff_dns",
        "skiff_ingress",
        "skiff_kubelet",
        "skiff_net",
        "skiff_overlay",
        "skiff_pki",
        "skiff_proxy",
        "skiff_scheduler",
        "skiff_store",
    ]
    .into_iter()
}
