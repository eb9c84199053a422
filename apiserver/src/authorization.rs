//! Who may do what: `system:masters` may do everything, nodes what their pods need, others what roles allow.

mod node;
mod rbac;

pub use node::{LEASES, NODES, NodeSources, node_name};
pub use rbac::{Rbac, Rule, Rules, Sources, all_held};

use node::NodeAuthorizer;

use crate::authentication::{MASTERS, User};
use crate::errors::Result;
use crate::request::RequestInfo;
use skiff_api::status::{Qualified, Status};

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a> {
    /// `get`, `list`, `create`, ...
    pub verb: &'a str,
    /// Whether it is about a resource (else about a path).
    pub is_resource: bool,
    /// API group.
    pub group: &'a str,
    /// Plural name.
    pub resource: &'a str,
    /// Part of the object.
    pub subresource: &'a str,
    /// Namespace; empty for cluster scope.
    pub namespace: &'a str,
    /// Name of the object; empty for all.
    pub name: &'a str,
    /// Which objects of a collection; empty for all.
    pub field_selector: &'a str,
    /// The path, when it is not about a resource.
    pub path: &'a str,
}

impl<'a> Attributes<'a> {
    /// Of a request.
    pub fn of(info: &'a RequestInfo) -> Self {
        Self {
            verb: info.verb,
            is_resource: info.is_resource,
            group: &info.group,
            resource: &info.resource,
            subresource: &info.subresource,
            namespace: &info.namespace,
            name: &info.name,
            field_selector: &info.field_selector,
            path: &info.path,
        }
    }
}

/// Decides who may do what.
#[derive(Debug)]
pub struct Authorizer {
    node: NodeAuthorizer,
    rbac: Rbac,
}

impl Authorizer {
    /// An authorizer by what nodes run, and by roles.
    pub fn new(nodes: NodeSources, rbac: Rbac) -> Self {
        Self {
            node: NodeAuthorizer::new(nodes),
            rbac,
        }
    }

    /// What allows it: the reason, or `None` when nothing does.
    pub fn allows(&self, user: &User, attributes: &Attributes<'_>) -> Option<String> {
        if user.is_in(MASTERS) || self.node.is_allowed(user, attributes) {
            return Some(String::new());
        }
        self.rbac.allows(user, attributes)
    }

    /// As [`Authorizer::allows`], without saying why.
    pub fn is_allowed(&self, user: &User, attributes: &Attributes<'_>) -> bool {
        user.is_in(MASTERS) || self.node.is_allowed(user, attributes) || self.rbac.is_allowed(user, attributes)
    }

    /// Refuses what is not allowed, in upstream's words.
    pub fn authorize(&self, user: &User, attributes: &Attributes<'_>) -> Result<()> {
        if self.is_allowed(user, attributes) {
            return Ok(());
        }
        Err(refusal(user, attributes))
    }

    /// The rules of a role; `None` when it does not exist. `namespace` is that of a Role, and empty for a ClusterRole.
    pub fn role(&self, namespace: &str, name: &str) -> Option<Rules> {
        self.rbac.role(namespace, name)
    }

    /// All rules that apply to a user in a namespace.
    pub fn rules(&self, user: &User, namespace: &str) -> Vec<Rules> {
        let mut rules = self.rbac.rules(user, namespace);
        if user.is_in(MASTERS) {
            rules.insert(0, Rules::everything());
        }
        rules
    }
}

fn refusal(user: &User, attributes: &Attributes<'_>) -> Status {
    let Attributes {
        verb, group, namespace, ..
    } = *attributes;
    if !attributes.is_resource {
        let why = format!("User \"{}\" cannot {verb} path \"{}\"", user.name, attributes.path);
        return Status::forbidden(Qualified::new("", ""), "", &why);
    }
    let resource = match attributes.subresource {
        "" => attributes.resource.to_owned(),
        subresource => format!("{}/{subresource}", attributes.resource),
    };
    let scope = match namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    let why = format!(
        "User \"{}\" cannot {verb} resource \"{resource}\" in API group \"{group}\" {scope}",
        user.name
    );
    Status::forbidden(Qualified::new(group, attributes.resource), attributes.name, &why)
}

#[cfg(test)]
mod tests {
    use super::{Attributes, refusal};
    use crate::authentication::User;

    #[test]
    fn refusals_say_who_may_not_do_what_and_where() {
        let user = User::new("u", ["g"]);
        let list = Attributes {
            verb: "list",
            is_resource: true,
            group: "apps",
            resource: "deployments",
            namespace: "n",
            ..Attributes::default()
        };
        assert_eq!(
            refusal(&user, &list).message,
            "deployments.apps is forbidden: User \"u\" cannot list resource \"deployments\" in API group \"apps\" in the namespace \"n\""
        );
        let path = Attributes {
            verb: "get",
            path: "/metrics",
            ..Attributes::default()
        };
        assert_eq!(
            refusal(&User::anonymous(), &path).message,
            "forbidden: User \"system:anonymous\" cannot get path \"/metrics\""
        );
    }
}
