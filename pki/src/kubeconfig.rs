//! The `v1 Config` file that clients take their server and credentials from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Identity, files};

/// A kubeconfig. Fields that skiff does not know are kept.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Kubeconfig {
    /// Always `v1`.
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    /// Always `Config`.
    pub kind: String,
    /// Servers.
    pub clusters: Vec<NamedCluster>,
    /// Which user at which cluster.
    pub contexts: Vec<NamedContext>,
    /// The context in use.
    #[serde(rename = "current-context")]
    pub current_context: String,
    /// Credentials.
    pub users: Vec<NamedUser>,
    /// Everything else.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// A cluster under its name.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct NamedCluster {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub cluster: Cluster,
}

/// Where an API server is, and how to know that it is the right one.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Cluster {
    /// `https://host:port`.
    pub server: String,
    /// PEM of the authority to trust, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_authority_data: Option<String>,
    /// A file with that PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_authority: Option<PathBuf>,
    /// Everything else.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// A context under its name.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct NamedContext {
    /// Its name.
    pub name: String,
    /// Which user, which cluster.
    pub context: Context,
}

/// A user at a cluster.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Context {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the user.
    pub user: String,
    /// Namespace to use where none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// A user under its name.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct NamedUser {
    /// Its name.
    pub name: String,
    /// Its credentials.
    pub user: User,
}

/// Credentials.
#[derive(Clone, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct User {
    /// PEM of the certificate, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate_data: Option<String>,
    /// PEM of the key, in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key_data: Option<String>,
    /// A file with the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<PathBuf>,
    /// A file with the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
    /// A bearer token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// The current context, with every file read.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// `https://host:port`.
    pub server: String,
    /// The authority to trust.
    pub ca_pem: String,
    /// A client certificate, if that is how the user authenticates.
    pub identity: Option<Identity>,
    /// A bearer token, if that is how.
    pub token: Option<String>,
}

impl Cluster {
    /// An API server at `server` that an authority vouches for.
    pub fn at(server: &str, ca_pem: &str) -> Self {
        Self {
            server: server.to_owned(),
            certificate_authority_data: Some(STANDARD.encode(ca_pem)),
            ..Self::default()
        }
    }
}

// === impl Kubeconfig ===

impl Kubeconfig {
    /// One user at one cluster, everything embedded: what kubeadm writes as `admin.conf`.
    pub fn embedded(cluster: &str, server: &str, ca_pem: &str, user: &str, identity: &Identity) -> Self {
        let context = format!("{user}@{cluster}");
        Self {
            api_version: "v1".to_owned(),
            kind: "Config".to_owned(),
            clusters: vec![NamedCluster {
                name: cluster.to_owned(),
                cluster: Cluster::at(server, ca_pem),
            }],
            contexts: vec![NamedContext {
                name: context.clone(),
                context: Context {
                    cluster: cluster.to_owned(),
                    user: user.to_owned(),
                    ..Context::default()
                },
            }],
            current_context: context,
            users: vec![NamedUser {
                name: user.to_owned(),
                user: User {
                    client_certificate_data: Some(STANDARD.encode(identity.certificate_pem())),
                    client_key_data: Some(STANDARD.encode(identity.key_pem())),
                    ..User::default()
                },
            }],
            other: BTreeMap::new(),
        }
    }

    /// A cluster without a user: what `cluster-info` tells everybody.
    pub fn anonymous(server: &str, ca_pem: &str) -> Self {
        Self {
            api_version: "v1".to_owned(),
            kind: "Config".to_owned(),
            clusters: vec![NamedCluster {
                name: String::new(),
                cluster: Cluster {
                    server: server.to_owned(),
                    certificate_authority_data: Some(STANDARD.encode(ca_pem)),
                    ..Cluster::default()
                },
            }],
            ..Self::default()
        }
    }

    /// A user who shows a token: what `join` writes as `bootstrap-kubelet.conf`.
    pub fn with_token(server: &str, ca_pem: &str, user: &str, token: &str) -> Self {
        let mut config = Self::anonymous(server, ca_pem);
        let cluster = "kubernetes";
        for named in &mut config.clusters {
            cluster.clone_into(&mut named.name);
        }
        config.current_context = format!("{user}@{cluster}");
        config.contexts = vec![NamedContext {
            name: config.current_context.clone(),
            context: Context {
                cluster: cluster.to_owned(),
                user: user.to_owned(),
                ..Context::default()
            },
        }];
        config.users = vec![NamedUser {
            name: user.to_owned(),
            user: User {
                token: Some(token.to_owned()),
                ..User::default()
            },
        }];
        config
    }

    /// Reads a text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        serde_saphyr::from_str(text).map_err(|error| Error::ParseKubeconfig {
            path: "given as text".into(),
            reason: error.to_string(),
        })
    }

    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        serde_saphyr::from_str(&files::read(path)?).map_err(|error| Error::ParseKubeconfig {
            path: path.to_owned(),
            reason: error.to_string(),
        })
    }

    /// The name of the user of the current context.
    pub fn current_user(&self) -> Option<String> {
        let current = self
            .contexts
            .iter()
            .find(|context| context.name == self.current_context);
        current.map(|context| context.context.user.clone())
    }

    /// The user of the current context shows this certificate from now on, and its cluster is known by this authority; both embedded.
    pub fn set_current(&mut self, identity: &Identity, ca_pem: &str) {
        let current = self
            .contexts
            .iter()
            .find(|context| context.name == self.current_context);
        let Some(Context { cluster, user, .. }) = current.map(|found| &found.context) else {
            return;
        };
        for named in self.users.iter_mut().filter(|named| named.name == *user) {
            named.user.set_identity(identity);
        }
        for named in self.clusters.iter_mut().filter(|named| named.name == *cluster) {
            named.cluster.certificate_authority_data = Some(STANDARD.encode(ca_pem));
            named.cluster.certificate_authority = None;
        }
    }

    /// The file's text. Each value is on its key's line, as kubectl writes it and as scripts look for it.
    pub fn to_yaml(&self) -> String {
        let value = serde_json::to_value(self).expect("a kubeconfig has string keys only");
        let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
        serde_saphyr::to_string_with_options(&value, options).expect("JSON is always YAML")
    }

    /// Writes a file that only its owner may read.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        files::write_private(path, self.to_yaml().as_bytes())
    }

    /// Server and authority of the first cluster, as `cluster-info` holds them.
    pub fn first_cluster(&self) -> Result<Option<(String, String)>, Error> {
        let Some(NamedCluster { cluster, .. }) = self.clusters.first() else {
            return Ok(None);
        };
        let ca = embedded_or_read(Path::new("given as text"), &cluster.certificate_authority_data, &None)?;
        Ok(ca.map(|ca| (cluster.server.clone(), ca)))
    }

    /// The server and credentials of the current context of the file at `path`, with the files that it names read
    /// relative to its directory.
    pub fn load(path: &Path) -> Result<Credentials, Error> {
        Self::read(path)?.credentials(path)
    }

    fn credentials(&self, path: &Path) -> Result<Credentials, Error> {
        let missing = |reason: String| Error::Kubeconfig {
            path: path.to_owned(),
            reason,
        };
        let wanted = &self.current_context;
        let context = &(self.contexts.iter().find(|context| &context.name == wanted))
            .ok_or_else(|| missing(format!("its current-context {wanted:?} is not among its contexts")))?
            .context;
        let cluster = &(self.clusters.iter().find(|cluster| cluster.name == context.cluster))
            .ok_or_else(|| missing(format!("no cluster named {:?}", context.cluster)))?
            .cluster;
        let user = &(self.users.iter().find(|user| user.name == context.user))
            .ok_or_else(|| missing(format!("no user named {:?}", context.user)))?
            .user;
        let text = |data: &Option<String>, file: &Option<PathBuf>| embedded_or_read(path, data, file);
        let ca_pem = text(&cluster.certificate_authority_data, &cluster.certificate_authority)?
            .ok_or_else(|| missing("no certificate-authority-data for its cluster".to_owned()))?;
        let certificate = text(&user.client_certificate_data, &user.client_certificate)?;
        let key = text(&user.client_key_data, &user.client_key)?;
        let identity = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(Identity::from_pem(certificate, key)?),
            (None, None) => None,
            _ => {
                return Err(missing(
                    "a client certificate needs its key, and a key its certificate".to_owned(),
                ));
            }
        };
        Ok(Credentials {
            server: cluster.server.clone(),
            ca_pem,
            identity,
            token: user.token.clone(),
        })
    }
}

impl User {
    /// Shows this certificate from now on, embedded.
    pub fn set_identity(&mut self, identity: &Identity) {
        self.client_certificate_data = Some(STANDARD.encode(identity.certificate_pem()));
        self.client_key_data = Some(STANDARD.encode(identity.key_pem()));
        self.client_certificate = None;
        self.client_key = None;
    }
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Keys and tokens must not reach a log.
        f.debug_struct("User").finish_non_exhaustive()
    }
}

fn embedded_or_read(kubeconfig: &Path, data: &Option<String>, file: &Option<PathBuf>) -> Result<Option<String>, Error> {
    if let Some(data) = data {
        let decoded = STANDARD
            .decode(data.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        return match decoded {
            Some(text) => Ok(Some(text)),
            None => Err(Error::Kubeconfig {
                path: kubeconfig.to_owned(),
                reason: "a -data field is not base64 of text".to_owned(),
            }),
        };
    }
    let Some(file) = file else { return Ok(None) };
    let directory = kubeconfig.parent().unwrap_or_else(|| Path::new("."));
    files::read(&directory.join(file)).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CertificateAuthority, Request};

    #[test]
    fn a_file_gives_back_what_was_embedded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.conf");
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let identity = authority
            .issue(&Request::client("kubernetes-admin", &["system:masters"]))
            .unwrap();
        let ca = authority.certificate_pem();
        let config = Kubeconfig::embedded(
            "kubernetes",
            "https://127.0.0.1:6443",
            ca,
            "kubernetes-admin",
            &identity,
        );
        config.write(&path).unwrap();

        assert_eq!(Kubeconfig::read(&path).unwrap(), config);
        let text = config.to_yaml();
        let on_its_line = |line: &str| line.trim().starts_with("certificate-authority-data: LS0t");
        assert!(text.lines().any(on_its_line), "{text}");
        let credentials = Kubeconfig::load(&path).unwrap();
        assert_eq!(credentials.server, "https://127.0.0.1:6443");
        assert_eq!(credentials.ca_pem, ca);
        assert_eq!(credentials.identity, Some(identity));
    }

    #[test]
    fn files_are_read_beside_the_kubeconfig_and_unknown_fields_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.conf");
        std::fs::write(directory.path().join("ca.pem"), "authority").unwrap();
        std::fs::write(
            &path,
            "apiVersion: v1\nkind: Config\npreferences: {}\ncurrent-context: a\n\
             clusters: [{name: c, cluster: {server: 'https://h:1', certificate-authority: ca.pem, proxy-url: 'http://p'}}]\n\
             contexts: [{name: a, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {token: secret}}]\n",
        )
        .unwrap();
        let config = Kubeconfig::read(&path).unwrap();
        assert!(config.to_yaml().contains("proxy-url"), "{}", config.to_yaml());
        assert!(!format!("{config:?}").contains("secret"));
        let credentials = Kubeconfig::load(&path).unwrap();
        assert_eq!(
            (credentials.ca_pem.as_str(), credentials.token.as_deref()),
            ("authority", Some("secret"))
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let config = Kubeconfig {
            current_context: "nowhere".to_owned(),
            ..Kubeconfig::default()
        };
        let error = config.credentials(Path::new("/x.conf")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "kubeconfig /x.conf: its current-context \"nowhere\" is not among its contexts"
        );
    }
}
