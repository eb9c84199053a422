//! Getting and listing: from the watch cache, or from the store where an older revision is asked for.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use skiff_api::status::Status;
use skiff_store::Revision;

use super::{Registry, Scope};
use crate::cache::{Listing, Object};
use crate::errors::{self, Result};
use crate::filter::Filter;
use crate::query::Query;

/// Which revision a read must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Everything that was acknowledged before.
    Consistent,
    /// Whatever there is.
    Any,
    /// At least that revision.
    AtLeast(u64),
    /// That revision.
    Exact(u64),
}

/// How a list is wanted.
#[derive(Debug)]
pub struct ListOptions {
    /// Which revision.
    pub freshness: Freshness,
    /// At most so many; 0 = all.
    pub limit: usize,
    /// The key behind which to go on.
    pub after: Option<String>,
}

/// Where a list that was cut goes on; opaque to clients.
#[derive(Debug, Serialize, Deserialize)]
struct Continue {
    v: String,
    rv: u64,
    start: String,
}

const CONTINUE_VERSION: &str = "meta.k8s.io/v1";

impl ListOptions {
    /// Reads the query. `prefix` is what the keys of the list begin with.
    pub fn parse(query: &Query, prefix: &str) -> Result<Self> {
        let limit = match query.non_empty("limit") {
            None => 0,
            Some(text) => text
                .parse()
                .map_err(|_| Status::bad_request(format!("limit: Invalid value: {text:?}")))?,
        };
        let version = revision(query)?;
        let matching = query.non_empty("resourceVersionMatch");
        if let Some(token) = query.non_empty("continue") {
            let bad = || Status::bad_request("continue key is not valid: it was not returned by this server");
            let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
            let token: Continue = serde_json::from_slice(&bytes).map_err(|_| bad())?;
            // A token must not lead out of what was authorized.
            if token.v != CONTINUE_VERSION || token.start.contains("..") {
                return Err(bad());
            }
            if version.is_some_and(|version| version != 0) {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            return Ok(Self {
                freshness: Freshness::Exact(token.rv),
                limit,
                after: Some(format!("{prefix}{}", token.start)),
            });
        }
        let freshness = match (version, matching) {
            (None, None) => Freshness::Consistent,
            (None, Some(_)) => {
                return Err(Status::bad_request(
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            (Some(0), Some("Exact")) => {
                return Err(Status::bad_request(
                    "resourceVersionMatch: Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            (Some(0), _) => Freshness::Any,
            (Some(version), Some("Exact")) => Freshness::Exact(version),
            (Some(version), None | Some("NotOlderThan")) => Freshness::AtLeast(version),
            (Some(_), Some(other)) => {
                return Err(Status::bad_request(format!(
                    "resourceVersionMatch: Unsupported value: \"{other}\": supported values: \"Exact\", \"NotOlderThan\", \"\""
                )));
            }
        };
        Ok(Self {
            freshness,
            limit,
            after: None,
        })
    }
}

/// The `resourceVersion` of a query.
pub fn revision(query: &Query) -> Result<Option<u64>> {
    query
        .non_empty("resourceVersion")
        .map(|text| {
            text.parse().map_err(|_| {
                Status::bad_request(format!(
                    "resourceVersion: Invalid value: {text:?}: it must be one that the server gave out"
                ))
            })
        })
        .transpose()
}

/// The token with which a list that ended at `last` goes on.
pub fn continue_token(listing: &Listing, prefix: &str) -> Option<String> {
    let last = listing.objects.last().filter(|_| listing.more)?;
    let token = Continue {
        v: CONTINUE_VERSION.to_owned(),
        rv: listing.revision,
        start: last.key().strip_prefix(prefix)?.to_owned(),
    };
    Some(URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).ok()?))
}

impl Registry {
    /// One object.
    pub async fn get(&self, scope: Scope<'_>, name: &str, freshness: Freshness) -> Result<Arc<Object>> {
        self.wait_for(freshness).await?;
        scope
            .served
            .cache
            .get(scope.namespace, name)
            .ok_or_else(|| Status::not_found(scope.served.resource.qualified(), name))
    }

    /// The objects that the filter lets through.
    pub async fn list(&self, scope: Scope<'_>, filter: &Filter, options: &ListOptions) -> Result<Listing> {
        let cache = &scope.served.cache;
        self.wait_for(options.freshness).await?;
        let applied = self.caches.applied();
        let after = options.after.as_deref();
        match options.freshness {
            // The past is what the cache has as long as nothing changed since.
            Freshness::Exact(revision) => {
                let mut listing = cache.list(filter.namespace(), after, options.limit, 0, |object| {
                    filter.selected(object)
                });
                if listing.revision <= revision {
                    listing.revision = revision;
                    return Ok(listing);
                }
                self.list_past(scope, filter, options, revision).await
            }
            _ => Ok(cache.list(filter.namespace(), after, options.limit, applied, |object| {
                filter.selected(object)
            })),
        }
    }

    async fn wait_for(&self, freshness: Freshness) -> Result<()> {
        match freshness {
            Freshness::Consistent => self.caches.fresh().await?,
            Freshness::Any => {}
            Freshness::AtLeast(revision) | Freshness::Exact(revision) => self.caches.reach(revision).await?,
        }
        Ok(())
    }

    /// A list as it was at `revision`, from the store's history.
    async fn list_past(
        &self,
        scope: Scope<'_>,
        filter: &Filter,
        options: &ListOptions,
        revision: u64,
    ) -> Result<Listing> {
        let cache = &scope.served.cache;
        let prefix = cache.prefix(filter.namespace());
        let limit = if filter.selects() { 0 } else { options.limit };
        let page = self
            .store
            .list(&prefix, Some(Revision(revision)), options.after.as_deref(), limit)
            .await
            .map_err(|error| errors::store(&error))?;
        let mut objects: Vec<Arc<Object>> = page
            .entries
            .iter()
            .map(|entry| Arc::new(cache.object(entry)))
            .filter(|object| filter.selected(object))
            .collect();
        let mut more = page.more;
        let mut remaining = usize::try_from(page.remaining).unwrap_or(usize::MAX);
        if options.limit > 0 && objects.len() > options.limit {
            more = true;
            remaining = objects.len() - options.limit;
            objects.truncate(options.limit);
        }
        Ok(Listing {
            objects,
            revision,
            more,
            remaining,
        })
    }
}
