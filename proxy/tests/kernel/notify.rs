//! What systemd is told of the process.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::api::{service, slice};
use crate::world::World;

const CHILD: &str = "SKIFF_PROXY_NOTIFY_CHILD";
const SERVICES: usize = 300;

/// The part that runs where `NOTIFY_SOCKET` is set: systemd's place, and the proxy.
fn listen() {
    let path = std::env::var_os("NOTIFY_SOCKET").unwrap();
    let socket = UnixDatagram::bind(path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let world = World::new();
    for index in 0..SERVICES {
        let name = format!("s{index}");
        let ip = format!("10.100.{}.{}", index / 250, index % 250 + 1);
        world.api.put("services", service(&name, &ip, json!({})));
        world.api.put("endpointslices", slice(&name, "TCP", &["10.244.1.2"]));
    }
    let _proxy = world.start("metricsBindAddress: \":0\"\n");
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(String::from_utf8_lossy(&buffer[..length]).trim(), "READY=1");
    let rules = world.rules();
    for index in 0..SERVICES {
        let leads = format!("test/s{index} -> 10.244.1.2:8080");
        assert!(rules.contains(&leads), "ready without {leads}");
    }
}

#[test]
fn it_is_ready_when_all_rules_are_in_force() {
    if std::env::var_os(CHILD).is_some() {
        return listen();
    }
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "notify::it_is_ready_when_all_rules_are_in_force",
            "--nocapture",
        ])
        .env(CHILD, "1")
        .env("NOTIFY_SOCKET", directory.path().join("notify.sock"))
        .output()
        .unwrap();
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}
