//! Certificate authority, issuing, service-account keys and kubeconfig files.
//!
//! Everything that a process needs to say who it is and to check who others are: [`CertificateAuthority`] signs an
//! [`Identity`] from a [`Request`]; [`server_config`] and [`client_config`] turn identities into TLS; [`peer_identity`]
//! reads the user and groups out of a client's certificate; [`Kubeconfig`] carries them to clients.
//! Private keys reach the disk only through [`files::write_private`].

pub mod files;
pub mod kubeconfig;

mod authority;
mod bootstrap_token;
mod error;
mod identity;
mod pin;
mod renewal;
mod service_account;
mod signing_request;
mod tls;
mod validity;

pub use authority::{CA_LIFETIME, CertificateAuthority, LEAF_LIFETIME};
pub use bootstrap_token::BootstrapToken;
pub use error::Error;
pub use identity::{Identity, Names, Request, Usage};
pub use kubeconfig::Kubeconfig;
pub use pin::{public_key_pin, public_key_pins};
pub use service_account::ServiceAccountKey;
pub use signing_request::SigningRequest;
pub use tls::{
    OldestTls, PeerIdentity, check_client_ca, client_config, peer_identity, server_config, server_config_since,
};
pub use validity::Validity;
