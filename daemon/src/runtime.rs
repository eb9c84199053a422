//! The life of a process: runtime, signals, readiness, exit code.

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::{LogOptions, Shutdown, error_chain, memory, notify};

/// After this a process does what it does all its life.
const STARTUP: Duration = Duration::from_secs(3);

/// Of a process that SIGINT has ended, as a shell has it.
const INTERRUPTED: i32 = 130;

/// Runs a process: starts logging, the async runtime and the TLS provider, then `main` until it returns.
///
/// SIGTERM and SIGINT cancel the [`Shutdown`] given to `main`; a second one ends the process at once.
/// An error is printed to stderr with its causes, and becomes exit code 1.
pub fn run<F>(name: &'static str, logs: LogOptions, main: impl FnOnce(Shutdown) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    block_on(name, logs, async {
        let shutdown = Shutdown::new();
        tokio::spawn(cancel_on_signal(shutdown.clone()));
        tokio::spawn(async {
            tokio::time::sleep(STARTUP).await;
            memory::give_back_startup();
        });
        main(shutdown).await
    })
}

/// Runs a command that a person waits for, as [`run`] does a process, but that SIGINT and SIGTERM simply end.
pub fn run_command(name: &'static str, logs: LogOptions, main: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    block_on(name, logs, main)
}

fn block_on(name: &'static str, logs: LogOptions, main: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    logs.init();
    install_crypto();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .thread_name(name)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{name}: start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(main);
    // Blocking threads (a log being followed, a file being read) must not hold the process back.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {}", error_chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Makes aws-lc-rs the process's TLS provider. [`run`] does it; tests that speak TLS call it themselves.
pub fn install_crypto() {
    // An error only says that it is installed already.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
}

async fn cancel_on_signal(shutdown: Shutdown) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("cannot listen for SIGTERM: the process will end without draining");
        return;
    };
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    next().await;
    tracing::info!("asked to stop");
    notify::stopping();
    shutdown.cancel();
    next().await;
    tracing::warn!("asked to stop again: leaving at once");
    #[allow(clippy::exit)] // whoever asks twice does not want to wait for tasks
    std::process::exit(INTERRUPTED);
}
