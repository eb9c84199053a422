//! Who a node's agent is to the API: what its client certificate names.

/// Group of all nodes' agents.
pub const GROUP: &str = "system:nodes";
/// What the name of a node's agent begins with; the node's name follows.
pub const PREFIX: &str = "system:node:";

/// The node whose agent a user with this name, in these groups, is.
pub fn node_of<'a>(user: &'a str, groups: &[String]) -> Option<&'a str> {
    user.strip_prefix(PREFIX)
        .filter(|name| !name.is_empty() && groups.iter().any(|group| group == GROUP))
}

#[cfg(test)]
mod tests {
    use super::node_of;

    #[test]
    fn a_node_is_known_by_name_and_group() {
        for (user, group, node) in [
            ("system:node:n1", "system:nodes", Some("n1")),
            ("system:node:n1", "dev", None),
            ("system:node:", "system:nodes", None),
            ("n1", "system:nodes", None),
        ] {
            assert_eq!(
                node_of(user, &["a".to_owned(), group.to_owned()]),
                node,
                "{user} {group}"
            );
        }
    }
}
