//! What can go wrong when a machine becomes a node, told to the person who asked for it.

use std::io;
use std::path::PathBuf;

use crate::certs::CertsError;
use crate::join::DiscoveryFailure;
use crate::services::Service;
use crate::{address, config, preflight, services};

/// A failed step. Each text says what to do; the same command can then be run again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Flags or file.
    #[error("what was asked for cannot be done")]
    Config(#[from] config::Error),
    /// The machine's address.
    #[error("choose the address that other machines know this one by")]
    Address(#[from] address::Error),
    /// Preflight checks.
    #[error("{0}")]
    Preflight(preflight::Failed),
    /// A phase that does not exist.
    #[error("there is no phase {name:?}; the phases are: {phases}")]
    NoSuchPhase {
        /// What was given.
        name: String,
        /// Those that there are.
        phases: String,
    },
    /// Who runs the command may not change the machine; kubeadm's words.
    #[error("user is not running as root; run the command with sudo")]
    NotRoot,
    /// Another command is at work.
    #[error("another `skiff init`, `join` or `reset` is at work on this machine; wait until it has ended")]
    Busy,
    /// A second `init` or `join`.
    #[error("this machine is {role} already, since {since}; nothing was changed. {hint}")]
    Already {
        /// What it is.
        role: &'static str,
        /// When it became that.
        since: String,
        /// What to do.
        hint: String,
    },
    /// A file or directory.
    #[error("{what} {}{}", path.display(), remedy(source))]
    File {
        /// The step.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The record is not what this version writes.
    #[error("{} is garbled; restore it, or remove it and run `skiff reset`", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Keys, certificates, kubeconfigs.
    #[error("credentials{}", pki_remedy(.0))]
    Credentials(#[from] skiff_pki::Error),
    /// An authority that is over.
    #[error("the authority {} has expired ({until}): everything that trusts it must get a new one; restore a newer one, or begin anew with `skiff reset`", path.display())]
    AuthorityExpired {
        /// Its certificate.
        path: PathBuf,
        /// Its end.
        until: String,
    },
    /// The clock runs behind the authority's first second.
    #[error("the authority {} is valid from {from} on only: is this machine's clock wrong? (timedatectl set-ntp true)", path.display())]
    AuthorityNotYetValid {
        /// Its certificate.
        path: PathBuf,
        /// Its beginning.
        from: String,
    },
    /// systemd.
    #[error("manage services")]
    Services(#[from] services::Error),
    /// A service that ends instead of running.
    #[error("{service} does not stay up; {hint} shows why, and its last lines are:\n{log}")]
    ServiceFailed {
        /// Which.
        service: Service,
        /// How to see more.
        hint: String,
        /// The end of its log.
        log: String,
    },
    /// Something that did not come about.
    #[error("{what} within {seconds} s; {hint}")]
    TooLate {
        /// What was awaited.
        what: String,
        /// How long.
        seconds: u64,
        /// Where to look.
        hint: String,
    },
    /// A kubeconfig.
    #[error("use the kubeconfig {}: is this machine a control plane? (skiff init)", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<kube::config::KubeconfigError>,
    },
    /// A URL that is none.
    #[error("{url:?} is not a URL of an API server")]
    ServerUrl {
        /// What was given.
        url: String,
    },
    /// The API server's answer, or that there is none.
    #[error("{what} at {server}")]
    Api {
        /// The request.
        what: String,
        /// Where.
        server: String,
        /// What came back.
        source: Box<kube::Error>,
    },
    /// An answer that is no success.
    #[error("{what} at {server}: HTTP status {status}")]
    Answer {
        /// The request.
        what: String,
        /// Where.
        server: String,
        /// The status code.
        status: u16,
    },
    /// Something else answers.
    #[error("what answers {path} at {server} is not an API server; check the address and the port")]
    NotAnApiServer {
        /// The request.
        path: String,
        /// Where.
        server: String,
    },
    /// The container runtime.
    #[error("the container runtime at {endpoint}")]
    Runtime {
        /// Its socket.
        endpoint: String,
        /// What it said.
        source: skiff_cri::Error,
    },
    /// An image archive.
    #[error("write the archive of the pause image to {}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing says where the cluster is.
    #[error(
        "the cluster has no ConfigMap kube-public/cluster-info with a kubeconfig in it; `skiff init` makes it in its phase bootstrap-token"
    )]
    NoClusterInfo,
    /// Whom to trust.
    #[error("find out whom to trust")]
    Discovery(#[from] DiscoveryFailure),
    /// A name that leads nowhere.
    #[error("the host {host:?} has no address; check the name, and this machine's DNS (getent hosts {host})")]
    UnknownHost {
        /// What was given.
        host: String,
    },
    /// The server does not take the token.
    #[error(
        "the API server does not take the token: it was deleted, has expired, or is not for authentication; get a new one on the control plane: skiff token create --print-join-command"
    )]
    TokenRefused,
    /// Two machines with one name.
    #[error(
        "the cluster has a live node called {name:?} already, at {address}; give this machine another name (--node-name, or hostnamectl set-hostname), or remove the other first: skiff reset there, then kubectl delete node {name}"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Where the other is.
        address: String,
    },
    /// The cluster does not tell its nodes' configuration.
    #[error(
        "the cluster's ConfigMap kube-system/{name} is missing or garbled; `skiff init` makes it in its phase upload-config"
    )]
    NoConfiguration {
        /// The ConfigMap.
        name: String,
    },
    /// Another machine is known by the same address.
    #[error(
        "the cluster's live node {name:?} is known by {address}, this machine's address, too: packets for one would reach the other. Give each machine an address of its own and name it with --node-ip (Vagrant's first interface has the same everywhere), or remove the other node first: kubectl delete node {name}"
    )]
    AddressTaken {
        /// Whose it is.
        name: String,
        /// The address.
        address: std::net::IpAddr,
    },
    /// A second server beside a SQLite file.
    #[error(
        "this cluster keeps its state in a SQLite file of its first machine, so that no other can serve it: join as a worker (without --control-plane), or begin a cluster on etcd: skiff init --etcd-servers URL --control-plane-endpoint HOST --upload-certs (skiff backup and skiff restore take the state along)"
    )]
    OneServer,
    /// Nodes know the cluster by the first machine's address.
    #[error(
        "this cluster has no address that stays when its first machine goes: nodes would not find a further control plane. Begin it with: skiff init --control-plane-endpoint HOST"
    )]
    NoEndpoint,
    /// The keys are not in the cluster any more.
    #[error(
        "the cluster keeps no keys for further control planes: they go two hours after they were uploaded. On a control plane: skiff init phase upload-certs --upload-certs, which prints a new key for --certificate-key; or copy the files of /etc/kubernetes/pki here and leave --certificate-key out"
    )]
    NoUploadedCertificates,
    /// They were encrypted with another one.
    #[error(
        "the cluster's keys do not open with this --certificate-key: look for a slip of the finger, or have a new one printed on a control plane: skiff init phase upload-certs --upload-certs"
    )]
    WrongCertificateKey,
    /// Another cluster's file, maybe.
    #[error("{} is there already and is not the cluster's: move it away, or run skiff reset, then the same command again", path.display())]
    OtherFile {
        /// The file.
        path: PathBuf,
    },
    /// Nobody has copied them.
    #[error(
        "a further control plane needs the cluster's keys, and these are missing: {missing}. Give --certificate-key with what `skiff init phase upload-certs --upload-certs` prints on a control plane, or copy the files from there"
    )]
    MissingKeys {
        /// Their paths.
        missing: String,
    },
    /// The copied authority is not the one that the cluster shows.
    #[error("{} is not the authority of the cluster at {server} ({pin}): copy it from a control plane of that cluster", path.display())]
    OtherAuthority {
        /// The file.
        path: PathBuf,
        /// The cluster.
        server: String,
        /// What its authority is known by.
        pin: String,
    },
    /// The runtime's configuration.
    #[error("read {}: {reason}; `containerd config default` prints a whole one", path.display())]
    RuntimeConfiguration {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        reason: String,
    },
    /// Another program's node, or what somebody has prepared.
    #[error("nothing was changed: no record of `skiff init` or `skiff join` is here, and {} is not of their making; what made it takes it away (kubeadm reset, k3s-uninstall.sh), or remove it yourself", path.display())]
    NotOurs {
        /// What was found.
        path: PathBuf,
    },
    /// A worker that joins once more keeps its settings.
    #[error("{flag} {wanted}: this node has {has}, and joining once more changes no settings; leave the flag out, write it into {}, or run `skiff reset` first", file.display())]
    SettingsStay {
        /// What was given.
        flag: &'static str,
        /// Its value.
        wanted: String,
        /// What it has.
        has: String,
        /// Where that stands.
        file: PathBuf,
    },
    /// A configuration file that is none.
    #[error("cannot read this node's settings in {}: {reason}; correct the file", file.display())]
    Settings {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A worker that joins once more does so in its own cluster.
    #[error("this machine is a worker of another cluster: none of the authorities in {} is the one that answers; run `skiff reset` first, or, if the cluster's authority was replaced while this machine was off, copy the new ca.crt of a control plane there", file.display())]
    AnotherCluster {
        /// The authorities that it trusts.
        file: PathBuf,
    },
    /// Not a node.
    #[error("this machine is no node of a cluster; begin one with `skiff init`, or join one with `skiff join`")]
    NoNode,
    /// Certificates.
    #[error("{0}")]
    Certs(#[from] CertsError),
    /// No randomness.
    #[error("the system gives no random bytes for a token")]
    Random,
    /// Another token's id.
    #[error("a token with id {id:?} already exists; `skiff token list` shows it, `skiff token delete {id}` removes it")]
    TokenExists {
        /// Its id.
        id: String,
    },
    /// Not a token's id.
    #[error("{id:?} is neither a token nor a token's id; `skiff token list` shows them")]
    TokenId {
        /// What was given.
        id: String,
    },
}

impl Error {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    pub(crate) fn api(what: impl Into<String>, server: &str) -> impl FnOnce(kube::Error) -> Self {
        let (what, server) = (what.into(), server.to_owned());
        move |source| Self::Api {
            what,
            server,
            source: Box::new(source),
        }
    }
}

/// A full disk is the one fault that a person can mend at once.
fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": the disk is full; make room there (df -h), then run the same command again"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            ": the file system is read-only; mount it writable, then run the same command again"
        }
        _ => "",
    }
}

fn pki_remedy(error: &skiff_pki::Error) -> &'static str {
    match error {
        skiff_pki::Error::Write { source, .. } => remedy(source),
        _ => "",
    }
}
