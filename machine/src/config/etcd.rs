//! The files of an etcd that speaks TLS. Pure.

use std::path::{Path, PathBuf};

use skiff_api::config::EtcdConfiguration;

/// The same with paths that mean the same wherever they are read: the server's unit runs in another directory than the person who
/// named them.
pub(super) fn below(directory: &Path, etcd: EtcdConfiguration) -> EtcdConfiguration {
    let absolute = |path: Option<PathBuf>| path.map(|path| directory.join(path));
    EtcdConfiguration {
        ca_file: absolute(etcd.ca_file),
        cert_file: absolute(etcd.cert_file),
        key_file: absolute(etcd.key_file),
        ..etcd
    }
}

/// All that the server is to read.
pub(crate) fn files(etcd: &EtcdConfiguration) -> impl Iterator<Item = &PathBuf> {
    [&etcd.ca_file, &etcd.cert_file, &etcd.key_file].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_wherever_they_come_from() {
        let given = EtcdConfiguration {
            endpoints: vec!["https://10.0.0.5:2379".to_owned()],
            ca_file: Some("ca.crt".into()),
            cert_file: Some("/etc/etcd/client.crt".into()),
            key_file: None,
        };
        let found = below(Path::new("/srv"), given);
        let files: Vec<_> = files(&found).map(|path| path.display().to_string()).collect();
        assert_eq!(files, ["/srv/ca.crt", "/etc/etcd/client.crt"]);
        assert_eq!(found.endpoints.len(), 1);
    }
}
