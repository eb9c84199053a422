//! Nobody grants more than they hold: roles and bindings are checked against the rights of whoever writes them.

use std::sync::Arc;

use serde_json::Value;
use skiff_api::meta;
use skiff_api::status::{Qualified, Status};

use super::{Operation, Plugin, Review};
use crate::authentication::MASTERS;
use crate::authorization::{Attributes, Authorizer, Rule, Rules, all_held};
use crate::errors::Result;

const GROUP: &str = "rbac.authorization.k8s.io";

/// See the module.
#[derive(Debug)]
pub(super) struct Escalation {
    pub(super) authorizer: Arc<Authorizer>,
}

impl Escalation {
    fn may(&self, review: &Review<'_>, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let attributes = Attributes {
            verb,
            is_resource: true,
            group: GROUP,
            resource,
            namespace,
            name,
            ..Attributes::default()
        };
        self.authorizer.is_allowed(review.scope.user, &attributes)
    }

    fn check(&self, review: &Review<'_>, name: &str, wanted: &[Rule]) -> Result<()> {
        let user = review.scope.user;
        let held = self.authorizer.rules(user, review.scope.namespace);
        let missing: Vec<String> = wanted
            .iter()
            .filter(|rule| !all_held(&held, rule))
            .map(describe)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let why = format!(
            "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            user.groups,
            missing.join("\n")
        );
        Err(Status::forbidden(review.scope.served.resource.qualified(), name, &why))
    }
}

impl Plugin for Escalation {
    fn validate(&self, review: &Review<'_>, object: &Value) -> Result<()> {
        let resource = review.scope.served.resource;
        let writes = matches!(review.operation, Operation::Create | Operation::Update);
        if !writes || resource.group != GROUP || review.scope.user.is_in(MASTERS) {
            return Ok(());
        }
        let unchanged = |keys: &[&str]| {
            review
                .old
                .is_some_and(|old| keys.iter().all(|key| old[*key] == object[*key]))
        };
        let (namespace, name) = (review.scope.namespace, meta::name(object));
        match resource.plural {
            "roles" | "clusterroles" => {
                if unchanged(&["rules", "aggregationRule"])
                    || self.may(review, "escalate", resource.plural, namespace, name)
                {
                    return Ok(());
                }
                if object["aggregationRule"].is_object() && !unchanged(&["aggregationRule"]) {
                    self.check(review, name, &Rules::everything().0)?;
                }
                let rules: Vec<Rule> = serde_json::from_value(object["rules"].clone()).unwrap_or_default();
                self.check(review, name, &rules)
            }
            "rolebindings" | "clusterrolebindings" => {
                if unchanged(&["roleRef", "subjects"]) {
                    return Ok(());
                }
                let role = object["roleRef"]["name"].as_str().unwrap_or_default();
                let (plural, home) = match object["roleRef"]["kind"].as_str() {
                    Some("Role") => ("roles", namespace),
                    _ => ("clusterroles", ""),
                };
                if self.may(review, "bind", plural, namespace, role) {
                    return Ok(());
                }
                let rules = self
                    .authorizer
                    .role(home, role)
                    .ok_or_else(|| Status::not_found(Qualified::new(GROUP, plural), role))?;
                self.check(review, name, &rules.0)
            }
            _ => Ok(()),
        }
    }
}

fn describe(rule: &Rule) -> String {
    let parts = [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.resource_names),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("Verbs", &rule.verbs),
    ];
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{list:?}"))
        .collect();
    format!("{{{}}}", parts.join(", "))
}
