//! Phase `upload-certs`: the keys of the control plane in the cluster, encrypted, for the two hours in which others may join it. Names
//! and form are kubeadm's.
//!
//! The Secret belongs to a bootstrap token that is good for nothing but its end: with the token goes the Secret.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::objects;
use crate::api::Client;
use crate::certificate_key::CertificateKey;
use crate::config::{Cluster, Init, InitFlags};
use crate::files::Wanted;
use crate::token::{self, Token, Wish};
use crate::{Error, Layout, Machine};

const PHASE: &str = "upload-certs";
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
pub(crate) const SECRET: &str = "kubeadm-certs";
const KEPT_FOR: Duration = Duration::from_secs(2 * 3600);

/// A file that every control plane has.
struct Shared {
    /// Its key in the Secret.
    name: &'static str,
    path: PathBuf,
    private: bool,
}

/// The authorities and the key of service accounts; and what etcd asks for, where it asks.
fn plan(layout: &Layout, cluster: &Cluster) -> Vec<Shared> {
    let pki = layout.pki();
    let of = |name: &'static str| Shared {
        name,
        path: pki.join(name),
        private: name.ends_with(".key"),
    };
    let mut shared: Vec<_> = [
        "ca.crt",
        "ca.key",
        "front-proxy-ca.crt",
        "front-proxy-ca.key",
        "sa.pub",
        "sa.key",
    ]
    .map(of)
    .into();
    if let Some(etcd) = &cluster.etcd {
        let files = [
            ("external-etcd-ca.crt", &etcd.ca_file),
            ("external-etcd.crt", &etcd.cert_file),
            ("external-etcd.key", &etcd.key_file),
        ];
        shared.extend(files.into_iter().filter_map(|(name, path)| {
            let path = path.clone()?;
            let private = name.ends_with(".key");
            Some(Shared { name, path, private })
        }));
    }
    shared
}

/// Keeps them, for two hours from now.
pub(crate) async fn apply(
    machine: &Machine<'_>,
    api: &Client,
    cluster: &Cluster,
    key: &CertificateKey,
) -> Result<(), Error> {
    machine.say(
        PHASE,
        format!("Storing the certificates in Secret {SECRET:?} in the \"kube-system\" Namespace"),
    );
    let mut data = Map::new();
    for file in plan(&machine.layout, cluster) {
        let content = fs::read(&file.path).map_err(Error::file("read", &file.path))?;
        let sealed = key.encrypt(&content)?;
        data.insert(file.name.to_owned(), STANDARD.encode(sealed).into());
    }
    let owner = owner(api).await?;
    for (collection, object) in objects::for_control_planes(SECRET) {
        api.apply(&collection, &object).await?;
    }
    // Anew, and not laid over a former one: that has another owner, and maybe files that are no more.
    api.delete(&format!("{SECRETS}/{SECRET}")).await?;
    let secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": SECRET, "namespace": "kube-system", "ownerReferences": [owner] },
        "data": data,
    });
    api.create(SECRETS, &secret).await.map(drop)
}

/// A token that ends in time, and is for nothing else.
async fn owner(api: &Client) -> Result<Value, Error> {
    let token = Token::generate()?;
    let wish = Wish {
        ttl: Some(KEPT_FOR),
        description: format!("Proxy for managing TTL for the {SECRET} secret"),
        usages: Vec::new(),
        groups: Vec::new(),
    };
    let made = token::create(api, &token, &wish).await?;
    Ok(json!({
        "apiVersion": "v1", "kind": "Secret", "name": token.secret_name(), "uid": made["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": true,
    }))
}

/// Writes what the cluster keeps for control planes to where it belongs.
pub(crate) async fn download(
    machine: &Machine<'_>,
    api: &Client,
    cluster: &Cluster,
    key: &CertificateKey,
) -> Result<(), Error> {
    machine.say(
        "download-certs",
        format!("Downloading the certificates in Secret {SECRET:?} in the \"kube-system\" Namespace"),
    );
    let found = api.get(&format!("{SECRETS}/{SECRET}")).await?;
    let secret = found.ok_or(Error::NoUploadedCertificates)?;
    let files = plan(&machine.layout, cluster)
        .into_iter()
        .map(|file| open(file, &secret, key))
        .collect::<Result<Vec<_>, _>>()?;
    for file in files {
        let there = fs::read_to_string(&file.path).ok();
        if there.is_some_and(|there| there != file.content) {
            return Err(Error::OtherFile { path: file.path });
        }
        if file.write()? {
            machine.say(
                "download-certs",
                format!("Saving {:?}", file.path.display().to_string()),
            );
        }
    }
    Ok(())
}

fn open(file: Shared, secret: &Value, key: &CertificateKey) -> Result<Wanted, Error> {
    let encoded = secret["data"][file.name].as_str();
    let sealed = encoded.and_then(|encoded| STANDARD.decode(encoded).ok());
    let sealed = sealed.ok_or(Error::NoUploadedCertificates)?;
    let plain = key.decrypt(&sealed).and_then(|plain| String::from_utf8(plain).ok());
    Ok(Wanted {
        path: file.path,
        content: plain.ok_or(Error::WrongCertificateKey)?,
        private: file.private,
    })
}

/// Files without which a machine cannot become a further control plane, of those that are not there.
pub(crate) fn missing(layout: &Layout, cluster: &Cluster) -> Vec<PathBuf> {
    let shared = plan(layout, cluster).into_iter();
    // The public key is made of the private one.
    shared
        .filter(|file| file.name != "sa.pub" && !file.path.exists())
        .map(|file| file.path)
        .collect()
}

/// The cluster as its ConfigMap `kubeadm-config` describes it.
pub(crate) async fn cluster(api: &Client) -> Result<Cluster, Error> {
    const NAME: &str = "kubeadm-config";
    let absent = || Error::NoConfiguration { name: NAME.to_owned() };
    let path = format!("/api/v1/namespaces/kube-system/configmaps/{NAME}");
    let map = api.get(&path).await?.ok_or_else(absent)?;
    let text = map["data"]["ClusterConfiguration"].as_str().ok_or_else(absent)?;
    Ok(Init::new(InitFlags::default(), Some(text))?.cluster)
}

/// `skiff init phase upload-certs`: once more, on a control plane.
///
/// # Errors
/// When this machine is none, or its cluster can have no other.
pub async fn again(machine: &Machine<'_>, key: Option<CertificateKey>) -> Result<CertificateKey, Error> {
    let api = Client::from_file(&machine.layout.kubeconfig("admin")).await?;
    let cluster = cluster(&api).await?;
    if cluster.etcd.is_none() {
        return Err(Error::OneServer);
    }
    let key = key.map_or_else(CertificateKey::generate, Ok)?;
    apply(machine, &api, &cluster, &key).await?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use skiff_api::config::EtcdConfiguration;

    use super::*;

    fn with_etcd() -> Cluster {
        let etcd = EtcdConfiguration {
            endpoints: vec!["https://e:2379".to_owned()],
            ca_file: Some("/pki/etcd/ca.crt".into()),
            cert_file: Some("/pki/client.crt".into()),
            key_file: Some("/pki/client.key".into()),
        };
        let flags = InitFlags {
            etcd: Some(etcd),
            ..InitFlags::default()
        };
        Init::new(flags, None).unwrap().cluster
    }

    #[test]
    fn what_control_planes_share_has_kubeadms_names_and_keys_are_private() {
        let shared = plan(&Layout::default(), &with_etcd());
        let names: Vec<_> = shared.iter().map(|file| file.name).collect();
        let wanted = "ca.crt ca.key front-proxy-ca.crt front-proxy-ca.key sa.pub sa.key external-etcd-ca.crt external-etcd.crt external-etcd.key";
        assert_eq!(names.join(" "), wanted);
        assert!(shared.iter().all(|file| file.private == file.name.ends_with(".key")));
        let alone = Init::new(InitFlags::default(), None).unwrap().cluster;
        assert_eq!(plan(&Layout::default(), &alone).len(), 6);
    }

    #[test]
    fn another_key_opens_nothing_and_says_so() {
        let key = CertificateKey::generate().unwrap();
        let sealed = STANDARD.encode(key.encrypt(b"PEM").unwrap());
        let secret = json!({ "data": { "ca.crt": sealed } });
        let file = || plan(&Layout::default(), &with_etcd()).remove(0);
        assert_eq!(open(file(), &secret, &key).unwrap().content, "PEM");
        let other = CertificateKey::generate().unwrap();
        let error = open(file(), &secret, &other).unwrap_err().to_string();
        assert!(error.contains("--certificate-key"), "{error}");
        let error = open(file(), &json!({}), &key).unwrap_err().to_string();
        assert!(
            error.contains("skiff init phase upload-certs --upload-certs"),
            "{error}"
        );
    }

    #[test]
    fn files_that_were_not_copied_are_named() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let cluster = Init::new(InitFlags::default(), None).unwrap().cluster;
        fs::create_dir_all(layout.pki()).unwrap();
        for name in ["ca.crt", "ca.key", "front-proxy-ca.crt", "sa.key"] {
            fs::write(layout.pki().join(name), "x").unwrap();
        }
        assert_eq!(missing(&layout, &cluster), [layout.pki().join("front-proxy-ca.key")]);
    }
}
