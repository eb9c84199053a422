//! Under which identity each controller acts.

use std::fmt;
use std::sync::Arc;

use kube::Client;

/// The manager's client, and one for each controller: what upstream's `--use-service-account-credentials` is for.
#[derive(Clone)]
pub struct Clients {
    manager: Client,
    of: Option<Arc<ByAccount>>,
}

/// Makes the client of a service account of `kube-system`.
type ByAccount = dyn Fn(&str) -> Client + Send + Sync;

impl Clients {
    /// Informers and events go under `manager`; each controller writes as what `of` makes of its service account's name in
    /// `kube-system` (`deployment-controller`).
    pub fn each(manager: Client, of: impl Fn(&str) -> Client + Send + Sync + 'static) -> Self {
        Self {
            manager,
            of: Some(Arc::new(of)),
        }
    }

    pub(crate) fn manager(&self) -> &Client {
        &self.manager
    }

    pub(crate) fn of(&self, account: &str) -> Client {
        match &self.of {
            Some(of) => of(account),
            None => self.manager.clone(),
        }
    }
}

impl From<Client> for Clients {
    /// Everything under one identity.
    fn from(manager: Client) -> Self {
        Self { manager, of: None }
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").finish_non_exhaustive()
    }
}
