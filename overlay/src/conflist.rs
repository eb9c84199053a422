//! The CNI configuration of this node.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::Config;

/// The runtime takes the lowest name.
pub(crate) const FILE: &str = "10-skiff.conflist";

/// Writes the configuration when it differs from what is there. Returns whether it did.
///
/// The runtime reads the folder at any moment: the file appears whole, by a rename, and its draft has a name that the
/// runtime does not read.
pub(crate) fn write(config: &Config, own: &[IpNet], mtu: u32, route_mtu: Option<u32>) -> io::Result<bool> {
    let text = format!("{:#}\n", render(config, own, mtu, route_mtu));
    let path = config.cni_config_dir.join(FILE);
    if fs::read_to_string(&path).is_ok_and(|found| found == text) {
        return Ok(false);
    }
    fs::create_dir_all(&config.cni_config_dir)?;
    let draft = config.cni_config_dir.join(format!(".{FILE}.tmp"));
    let mut file = File::create(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, &path)?;
    sync_folder(&config.cni_config_dir)?;
    Ok(true)
}

/// Removes the configuration. Returns whether it was there.
pub(crate) fn remove(config: &Config) -> io::Result<bool> {
    match fs::remove_file(config.cni_config_dir.join(FILE)) {
        Ok(()) => sync_folder(&config.cni_config_dir).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Masquerading is not asked of the plugin: one rule for the node, made once, does it for all pods.
fn render(config: &Config, own: &[IpNet], mtu: u32, route_mtu: Option<u32>) -> Value {
    let ranges: Vec<_> = own.iter().map(|range| json!([{ "subnet": range.trunc() }])).collect();
    let routes: Vec<_> = own
        .iter()
        .map(|range| {
            let mut route = json!({ "dst": if range.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" } });
            if let Some(mtu) = route_mtu {
                route["mtu"] = mtu.into();
            }
            route
        })
        .collect();
    let bridge = json!({
        "type": "bridge",
        "bridge": config.bridge,
        "isGateway": true,
        "hairpinMode": true,
        "ipMasq": false,
        "mtu": mtu,
        "ipam": { "type": "host-local", "dataDir": config.cni_data_dir, "ranges": ranges, "routes": routes },
    });
    // The runtime hands a pod's host ports to the plugin that says it takes them.
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true }, "snat": true });
    // Old runtimes read the first field, new ones negotiate by the second.
    json!({ "cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"], "name": "skiff", "plugins": [bridge, portmap] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_written_once_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::new("a");
        config.cni_config_dir = folder.path().join("net.d");
        let own = ["10.244.3.0/24".parse().unwrap()];
        assert!(write(&config, &own, 1500, None).unwrap());
        assert!(!write(&config, &own, 1500, None).unwrap());
        let names: Vec<_> = fs::read_dir(&config.cni_config_dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, [FILE]);
        let text = fs::read_to_string(config.cni_config_dir.join(FILE)).unwrap();
        let written: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(written["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.244.3.0/24");
        assert_eq!(written["plugins"][0]["mtu"], 1500);
        assert_eq!(written["plugins"][0]["ipam"]["routes"], json!([{"dst": "0.0.0.0/0"}]));
        assert_eq!(written["plugins"][1]["capabilities"]["portMappings"], true);
        assert!(write(&config, &own, 1500, Some(1450)).unwrap());
        let text = fs::read_to_string(config.cni_config_dir.join(FILE)).unwrap();
        let written: Value = serde_json::from_str(&text).unwrap();
        let route = &written["plugins"][0]["ipam"]["routes"][0];
        assert_eq!(
            (&written["plugins"][0]["mtu"], &route["mtu"]),
            (&json!(1500), &json!(1450))
        );
        assert!(remove(&config).unwrap());
        assert!(!remove(&config).unwrap());
    }
}
