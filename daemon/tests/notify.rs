//! What systemd hears over a real socket: ready, alive for as long as the checks pass, and the end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead as _, Write as _};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use skiff_daemon::{Context, LogOptions};

const CHILD: &str = "SKIFF_DAEMON_NOTIFY_CHILD";
/// Of the watchdog: a third of it passes between two signs of life.
const LIMIT: Duration = Duration::from_millis(900);

/// A process whose liveness check fails when it reads a line.
fn child() -> ExitCode {
    skiff_daemon::run("test", LogOptions::default(), async |shutdown| {
        let context = Context {
            shutdown: shutdown.clone(),
            ..Context::default()
        };
        let check = context.health.liveness("loop");
        context.serving();
        std::thread::spawn(move || {
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line).unwrap();
            check.fail("stuck");
            // It stays so.
            std::mem::forget(check);
        });
        shutdown.cancelled().await;
        Ok(())
    })
}

/// The next message; `None` when there is none for a while.
fn hear(socket: &UnixDatagram) -> Option<String> {
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).trim().to_owned())
}

#[test]
fn a_process_that_is_not_alive_says_nothing() {
    if std::env::var_os(CHILD).is_some() {
        assert_eq!(format!("{:?}", child()), format!("{:?}", ExitCode::SUCCESS));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_process_that_is_not_alive_says_nothing", "--nocapture"])
        .env(CHILD, "1")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", LIMIT.as_micros().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(hear(&socket).as_deref(), Some("READY=1"));
    for _ in 0..4 {
        assert_eq!(hear(&socket).as_deref(), Some("WATCHDOG=1"));
    }
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    child.stdin.take().unwrap().write_all(b"stick\n").unwrap();
    // One or two may have been on their way.
    let late = std::iter::from_fn(|| hear(&socket)).take(10).count();
    assert!(late <= 2, "it feeds the watchdog although it is stuck");
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let terminate = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(terminate.success());
    assert_eq!(hear(&socket).as_deref(), Some("STOPPING=1"));
    assert!(child.wait().unwrap().success());
}
