//! Which versions of TLS a port speaks, asked by openssl.

use std::process::{Command, Stdio};

use anyhow::Context as _;

/// Versions, by openssl's flags, and whether a port of a cluster speaks them.
const VERSIONS: [(&str, bool); 4] = [
    ("-tls1", false),
    ("-tls1_1", false),
    ("-tls1_2", true),
    ("-tls1_3", true),
];

/// A port speaks TLS 1.2 and 1.3, and refuses what is older by an alert.
///
/// `enter` runs a command where the port is reached.
///
/// # Errors
/// When it does not.
pub fn modern_only(
    host: &str,
    enter: impl Fn(&mut Command) -> anyhow::Result<std::process::Output>,
) -> anyhow::Result<()> {
    for (version, welcome) in VERSIONS {
        let mut command = Command::new("openssl");
        command
            .env("OPENSSL_CONF", "/dev/null")
            // Debian's own settings refuse old versions by themselves: it is the server that is asked here.
            .args(["s_client", "-connect", host, version, "-cipher", "ALL:@SECLEVEL=0"])
            .stdin(Stdio::null());
        let output = enter(&mut command).context("run openssl (packaging/deps.sh test)")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success() == welcome, "{host} {version}: {said}");
        // It was the server that refused.
        anyhow::ensure!(welcome || said.contains(" alert "), "{host} {version}: {said}");
    }
    Ok(())
}
