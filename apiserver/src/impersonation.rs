//! `Impersonate-User` and its kin: acting as somebody else, for those who may.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use percent_encoding::percent_decode_str;
use skiff_api::status::Status;

use crate::authentication::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, User, service_account_groups};
use crate::authorization::{Attributes, Authorizer};
use crate::errors::Result;

const PREFIX: &str = "impersonate-";
const EXTRA: &str = "extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Whom a request wants to act as.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    name: String,
    groups: Vec<String>,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

/// The user that a request acts as.
pub fn apply(authorizer: &Authorizer, user: Arc<User>, headers: &HeaderMap) -> Result<Arc<User>> {
    let Some(wanted) = Wanted::parse(headers)? else {
        return Ok(user);
    };
    wanted.authorize(authorizer, &user)?;
    Ok(Arc::new(wanted.acting()))
}

impl Wanted {
    /// Reads the headers; `None` when they want nobody else.
    fn parse(headers: &HeaderMap) -> Result<Option<Self>> {
        let mut wanted = Self::default();
        for (header, value) in headers {
            let Some(what) = header.as_str().strip_prefix(PREFIX) else {
                continue;
            };
            let Ok(value) = value.to_str() else {
                // To leave it out would be to act as somebody else than was asked for.
                return Err(Status::bad_request(format!(
                    "the header {header} holds more than visible ASCII"
                )));
            };
            match what {
                "user" if wanted.name.is_empty() => value.clone_into(&mut wanted.name),
                "uid" if wanted.uid.is_empty() => value.clone_into(&mut wanted.uid),
                "group" => wanted.groups.push(value.to_owned()),
                _ => {
                    if let Some(key) = what.strip_prefix(EXTRA) {
                        // Keys may hold what headers' names may not.
                        let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
                        wanted.extra.entry(key).or_default().push(value.to_owned());
                    }
                }
            }
        }
        if !wanted.name.is_empty() {
            return Ok(Some(wanted));
        }
        if headers.keys().any(|key| key.as_str().starts_with(PREFIX)) {
            return Err(Status::bad_request(
                "impersonating a group, uid or extra needs the header Impersonate-User too",
            ));
        }
        Ok(None)
    }

    /// Namespace and name, where a service account is meant.
    fn account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix("system:serviceaccount:")?.split_once(':')
    }

    /// Refuses where the user may not be all of it.
    fn authorize(&self, authorizer: &Authorizer, user: &User) -> Result<()> {
        let check = |wanted: Attributes<'_>| {
            let attributes = Attributes {
                verb: "impersonate",
                is_resource: true,
                ..wanted
            };
            authorizer.authorize(user, &attributes)
        };
        let (resource, namespace, name) = match self.account() {
            Some((namespace, account)) => ("serviceaccounts", namespace, account),
            None => ("users", "", self.name.as_str()),
        };
        check(Attributes {
            resource,
            namespace,
            name,
            ..Attributes::default()
        })?;
        for group in &self.groups {
            check(Attributes {
                resource: "groups",
                name: group,
                ..Attributes::default()
            })?;
        }
        if !self.uid.is_empty() {
            check(Attributes {
                group: AUTHENTICATION,
                resource: "uids",
                name: &self.uid,
                ..Attributes::default()
            })?;
        }
        let extra = self.extra.iter();
        for (key, value) in extra.flat_map(|(key, values)| values.iter().map(move |value| (key, value))) {
            check(Attributes {
                group: AUTHENTICATION,
                resource: "userextras",
                subresource: key,
                name: value,
                ..Attributes::default()
            })?;
        }
        Ok(())
    }

    /// The user, in the groups that come with the name: who asks for one of the two that divide the world is in that one.
    fn acting(self) -> User {
        let mut groups = match self.account() {
            Some((namespace, _)) if self.groups.is_empty() => service_account_groups(namespace).into(),
            _ => self.groups.clone(),
        };
        let (own, also): (_, &[&str]) = match self.name.as_str() {
            ANONYMOUS => (UNAUTHENTICATED, &[UNAUTHENTICATED]),
            _ => (AUTHENTICATED, &[AUTHENTICATED, UNAUTHENTICATED]),
        };
        if !groups.iter().any(|group| also.contains(&group.as_str())) {
            groups.push(own.to_owned());
        }
        User {
            name: self.name,
            uid: self.uid,
            groups,
            extra: self.extra,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let header = |(name, value): &(&str, &str)| {
            let name: HeaderName = name.parse().unwrap();
            (name, HeaderValue::from_bytes(value.as_bytes()).unwrap())
        };
        list.iter().map(header).collect()
    }

    #[test]
    fn groups_come_with_the_name() {
        for (name, asked, expected) in [
            ("jane", &[][..], &["system:authenticated"][..]),
            ("jane", &["dev"], &["dev", "system:authenticated"]),
            ("jane", &["system:authenticated"], &["system:authenticated"]),
            ("jane", &["system:unauthenticated"], &["system:unauthenticated"]),
            ("system:anonymous", &[], &["system:unauthenticated"]),
            ("system:anonymous", &["dev"], &["dev", "system:unauthenticated"]),
            (
                "system:serviceaccount:n:robot",
                &[],
                &[
                    "system:serviceaccounts",
                    "system:serviceaccounts:n",
                    "system:authenticated",
                ],
            ),
            (
                "system:serviceaccount:n:robot",
                &["dev"],
                &["dev", "system:authenticated"],
            ),
        ] {
            let groups = asked.iter().map(|group| ("impersonate-group", *group));
            let list: Vec<_> = [("impersonate-user", name)].into_iter().chain(groups).collect();
            let acting = Wanted::parse(&headers(&list)).unwrap().unwrap().acting();
            assert_eq!(acting.groups, expected, "{list:?}");
        }
    }

    #[test]
    fn nothing_that_was_asked_for_is_left_out() {
        assert_eq!(Wanted::parse(&headers(&[("accept", "\u{e9}")])).unwrap(), None);
        let user = ("impersonate-user", "jane");
        for (list, why) in [
            (&[("impersonate-user", "j\u{e4}ne")][..], "impersonate-user"),
            (&[user, ("impersonate-group", "d\u{e9}v")], "impersonate-group"),
            (&[user, ("impersonate-uid", "\u{fc}")], "impersonate-uid"),
            (&[user, ("impersonate-extra-a", "\u{fc}")], "impersonate-extra-a"),
            (&[("impersonate-uid", "7")], "needs the header Impersonate-User"),
        ] {
            let refused = Wanted::parse(&headers(list)).unwrap_err();
            assert!(
                refused.code == 400 && refused.message.contains(why),
                "{list:?}: {}",
                refused.message
            );
        }
    }
}
