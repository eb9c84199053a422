//! A bare machine becomes a node of a cluster, and stops being one: `skiff init`, `join`, `reset`, `token`, `certs`, `check`, with
//! kubeadm's habits.
//!
//! No task is spawned here, and no state is kept but on disk: each command looks at what is there, decides what is missing, and makes
//! that, so that one that was interrupted is simply run again. A phase is a file with a pure `plan` and an `apply`. What the machine
//! was like before is noted in a [`record`], by which `reset` proves that it left nothing.
//!
//! [`Layout`] says where things are, [`ServiceManager`] who runs the long-lived processes; tests put a directory and a supervisor of
//! their own in the place of `/` and systemd, and everything else is the same.

pub mod address;
pub mod api;
pub mod certificate_key;
pub mod certs;
pub mod check;
pub mod config;
pub mod duration;
pub mod init;
pub mod join;
pub mod layout;
pub mod preflight;
pub mod record;
pub mod reset;
pub mod services;
pub mod token;

mod error;
mod files;
mod machine;

pub use certificate_key::CertificateKey;
pub use error::Error;
pub use layout::Layout;
pub use machine::{Machine, Say};
pub use services::{Service, ServiceManager, Systemd};
