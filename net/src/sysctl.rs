//! Kernel settings under `/proc/sys`. Those below `net` are those of the calling thread's network namespace.

use std::fs;
use std::io;
use std::path::PathBuf;

/// A kernel setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no such setting.
    #[error("the kernel has no setting {name}: a module may not be loaded (br_netfilter for net.bridge.*)")]
    Absent {
        /// The setting, with dots.
        name: String,
    },
    /// The setting cannot be read.
    #[error("cannot read kernel setting {name}")]
    Read {
        /// The setting, with dots.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The setting cannot be written.
    #[error("cannot set kernel setting {name} to {value}: /proc/sys may be read-only here")]
    Write {
        /// The setting, with dots.
        name: String,
        /// The value that was wanted.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The value of a setting such as `net.ipv4.ip_forward`. An interface whose name has dots is written with slashes
/// for the separators: `net/ipv4/conf/eth0.7/route_localnet`.
pub fn get(name: &str) -> Result<String, Error> {
    match fs::read_to_string(path(name)) {
        Ok(value) => Ok(value.trim_end().to_owned()),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Err(Error::Absent { name: name.to_owned() }),
        Err(source) => Err(Error::Read {
            name: name.to_owned(),
            source,
        }),
    }
}

/// Gives a setting a value; nothing is written when it has it already, so that a read-only `/proc/sys` that was set up
/// well is no error. Returns whether it changed.
pub fn set(name: &str, value: &str) -> Result<bool, Error> {
    if get(name)? == value {
        return Ok(false);
    }
    fs::write(path(name), value).map_err(|source| Error::Write {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    })?;
    Ok(true)
}

fn path(name: &str) -> PathBuf {
    let relative = if name.contains('/') {
        name.to_owned()
    } else {
        name.replace('.', "/")
    };
    PathBuf::from("/proc/sys").join(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths() {
        for (name, wanted) in [
            ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            (
                "net/ipv4/conf/eth0.7/route_localnet",
                "/proc/sys/net/ipv4/conf/eth0.7/route_localnet",
            ),
        ] {
            assert_eq!(path(name), PathBuf::from(wanted));
        }
    }

    #[test]
    fn an_unknown_setting_is_told_apart() {
        assert!(matches!(get("net.no.such.setting"), Err(Error::Absent { .. })));
    }
}
