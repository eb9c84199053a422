//! `Impersonate-User` and its kin: acting as somebody else, for those who may.

use std::sync::Arc;

use http::HeaderMap;
use percent_encoding::percent_decode_str;
use skiff_api::status::Status;

use crate::authentication::{User, service_account_groups};
use crate::authorization::{Attributes, Authorizer};
use crate::errors::Result;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// The user that a request acts as.
pub fn apply(authorizer: &Authorizer, user: Arc<User>, headers: &HeaderMap) -> Result<Arc<User>> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(name) = text(USER) else {
        if headers.keys().any(|key| key.as_str().starts_with("impersonate-")) {
            return Err(Status::bad_request(
                "impersonating a group, uid or extra needs the header Impersonate-User too",
            ));
        }
        return Ok(user);
    };
    let groups: Vec<&str> = headers
        .get_all(GROUP)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let check = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        authorizer.authorize(
            &user,
            &Attributes {
                verb: "impersonate",
                is_resource: true,
                group,
                resource,
                subresource,
                namespace,
                name,
                ..Attributes::default()
            },
        )
    };
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|account| account.split_once(':'));
    match account {
        Some((namespace, account)) => check("", "serviceaccounts", "", namespace, account)?,
        None => check("", "users", "", "", name)?,
    }
    for group in &groups {
        check("", "groups", "", "", group)?;
    }
    let mut acting = User::new(name, groups.iter().copied());
    if let (Some((namespace, _)), true) = (account, groups.is_empty()) {
        acting.groups.extend(service_account_groups(namespace));
    }
    if let Some(uid) = text(UID) {
        check("authentication.k8s.io", "uids", "", "", uid)?;
        uid.clone_into(&mut acting.uid);
    }
    for (key, value) in headers {
        if let (Some(key), Ok(value)) = (key.as_str().strip_prefix(EXTRA), value.to_str()) {
            // Keys may hold what headers' names may not.
            let key = percent_decode_str(key).decode_utf8_lossy();
            check("authentication.k8s.io", "userextras", &key, "", value)?;
            acting.extra.entry(key.into_owned()).or_default().push(value.to_owned());
        }
    }
    if name == "system:anonymous" {
        acting.groups = vec![crate::authentication::UNAUTHENTICATED.to_owned()];
    }
    Ok(Arc::new(acting))
}
