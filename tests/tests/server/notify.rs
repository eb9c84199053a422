//! What systemd is told of a server that it started.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::Context as _;

use crate::servers::{LIMIT, Place};

/// The next message that begins so; others are passed over.
fn expect(socket: &UnixDatagram, wanted: &str) -> anyhow::Result<String> {
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).with_context(|| format!("wait for {wanted}"))?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if text.starts_with(wanted) {
            return Ok(text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_sees_a_server_start_live_reload_and_stop() -> anyhow::Result<()> {
    let place = Place::new(0)?;
    let path = place.path().join("notify.sock");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(LIMIT))?;
    let environment = [
        ("NOTIFY_SOCKET", path.display().to_string()),
        ("WATCHDOG_USEC", "900000".to_owned()),
    ];
    let mut server = place.start_with(1, &[], &environment)?;
    expect(&socket, "READY=1")?;
    // It means what it says.
    assert_eq!(server.kubectl.run(&["get", "--raw", "/readyz"])?, "ok");
    socket.set_read_timeout(Some(Duration::from_millis(900)))?;
    for _ in 0..4 {
        expect(&socket, "WATCHDOG=1")?;
    }
    socket.set_read_timeout(Some(LIMIT))?;
    server.signal("HUP")?;
    let reloading = expect(&socket, "RELOADING=1")?;
    anyhow::ensure!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    expect(&socket, "READY=1")?;
    let end = std::thread::spawn(move || server.stop());
    expect(&socket, "STOPPING=1")?;
    let status = end
        .join()
        .map_err(|_| anyhow::anyhow!("the end was not waited for"))??;
    anyhow::ensure!(status.success(), "{status}");
    Ok(())
}
