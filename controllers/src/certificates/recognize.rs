//! Which requests are of a kind that may be approved or signed without a person.

use skiff_api::nodes::{self, node_of};
use skiff_pki::SigningRequest as Parsed;

use super::{API_CLIENT, KUBELET_CLIENT};
use crate::view::SigningRequest;

const BOOTSTRAPPERS: &str = "system:bootstrappers";

/// A request of a known kind: what its requester must be allowed to `create`, and what is said when they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recognized {
    /// Subresource of `certificatesigningrequests`.
    pub(super) permission: &'static str,
    pub(super) message: &'static str,
}

const SELF_NODE: Recognized = Recognized {
    permission: "selfnodeclient",
    message: "Auto approving self kubelet client certificate after SubjectAccessReview.",
};
const NODE: Recognized = Recognized {
    permission: "nodeclient",
    message: "Auto approving kubelet client certificate after SubjectAccessReview.",
};
const PROXY: Recognized = Recognized {
    permission: "kubeproxyclient",
    message: "Auto approving kube-proxy client certificate after SubjectAccessReview.",
};
const SELF_PROXY: Recognized = Recognized {
    permission: "selfkubeproxyclient",
    message: "Auto approving self kube-proxy client certificate after SubjectAccessReview.",
};
const INGRESS: Recognized = Recognized {
    permission: "skiffingressclient",
    message: "Auto approving skiff-ingress client certificate after SubjectAccessReview.",
};
const SELF_INGRESS: Recognized = Recognized {
    permission: "selfskiffingressclient",
    message: "Auto approving self skiff-ingress client certificate after SubjectAccessReview.",
};

/// Of which kinds a client's request is, the likeliest first.
pub(super) fn recognize(request: &SigningRequest, parsed: &Parsed) -> Vec<Recognized> {
    let spec = &request.spec;
    match spec.signer_name.as_str() {
        KUBELET_CLIENT if kubelet_client(parsed, &spec.usages).is_ok() => {
            if spec.username == parsed.common_name {
                vec![SELF_NODE, NODE]
            } else {
                vec![NODE]
            }
        }
        API_CLIENT if is_bare(parsed) && are_client_usages(&spec.usages) => {
            let (own, node) = (spec.username == parsed.common_name, is_of_node(request));
            match parsed.common_name.as_str() {
                "system:kube-proxy" if own => vec![SELF_PROXY],
                "system:skiff-ingress" if own => vec![SELF_INGRESS],
                "system:kube-proxy" if node => vec![PROXY],
                "system:skiff-ingress" if node => vec![INGRESS],
                _ => Vec::new(),
            }
        }
        _ => Vec::new(),
    }
}

/// Whether a node asks, or a machine that is to become one.
fn is_of_node(request: &SigningRequest) -> bool {
    let spec = &request.spec;
    node_name(request).is_some() || spec.groups.iter().any(|group| group == BOOTSTRAPPERS)
}

/// The node that asks.
pub(super) fn node_name(request: &SigningRequest) -> Option<&str> {
    node_of(&request.spec.username, &request.spec.groups)
}

/// Whether the subject is a name and nothing else.
fn is_bare(parsed: &Parsed) -> bool {
    parsed.organizations.is_empty() && parsed.other_subject.is_empty() && no_names(parsed).is_ok()
}

fn no_names(parsed: &Parsed) -> Result<(), String> {
    for (what, there) in [
        ("DNS", !parsed.dns_names.is_empty()),
        ("Email", !parsed.emails.is_empty()),
        ("IP", !parsed.ip_addresses.is_empty()),
        ("URI", !parsed.uris.is_empty()),
    ] {
        if there {
            return Err(format!("{what} subjectAltNames are not allowed"));
        }
    }
    Ok(())
}

fn node_subject(parsed: &Parsed) -> Result<(), String> {
    if parsed.organizations != [nodes::GROUP] {
        return Err("subject organization is not system:nodes".to_owned());
    }
    if !parsed.common_name.starts_with(nodes::PREFIX) {
        return Err("subject common name does not begin with system:node:".to_owned());
    }
    Ok(())
}

fn are(usages: &[String], purpose: &str) -> bool {
    let has = |usage: &str| usages.iter().any(|own| own == usage);
    let count = if has("key encipherment") { 3 } else { 2 };
    has(purpose) && has("digital signature") && usages.len() == count
}

fn are_client_usages(usages: &[String]) -> bool {
    are(usages, "client auth")
}

/// What is wrong with a request for a kubelet's client certificate, in upstream's words.
pub(super) fn kubelet_client(parsed: &Parsed, usages: &[String]) -> Result<(), String> {
    node_subject(parsed)?;
    no_names(parsed)?;
    if !are_client_usages(usages) {
        return Err("usages did not match [client auth digital signature key encipherment]".to_owned());
    }
    Ok(())
}

/// What is wrong with a request for a kubelet's serving certificate, in upstream's words.
pub(super) fn kubelet_serving(parsed: &Parsed, usages: &[String]) -> Result<(), String> {
    node_subject(parsed)?;
    if parsed.dns_names.is_empty() && parsed.ip_addresses.is_empty() {
        return Err("DNS or IP subjectAltName is required".to_owned());
    }
    if !parsed.emails.is_empty() {
        return Err("Email subjectAltNames are not allowed".to_owned());
    }
    if !parsed.uris.is_empty() {
        return Err("URI subjectAltNames are not allowed".to_owned());
    }
    if !are(usages, "server auth") {
        return Err("usages did not match [digital signature key encipherment server auth]".to_owned());
    }
    Ok(())
}

/// What is wrong with a request for an API client's certificate, in upstream's words.
pub(super) fn api_client(usages: &[String]) -> Result<(), String> {
    for usage in usages {
        if !matches!(usage.as_str(), "client auth" | "digital signature" | "key encipherment") {
            return Err(format!("invalid usage for client certificate: {usage}"));
        }
    }
    if !usages.iter().any(|usage| usage == "client auth") {
        return Err("missing required usage for client certificate: client auth".to_owned());
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;
    use skiff_pki::Request;

    use super::*;

    /// A request as somebody sent it.
    pub(in super::super) fn request(
        signer: &str,
        (user, groups): (&str, &[&str]),
        usages: &[&str],
        wanted: &Request,
    ) -> SigningRequest {
        let key = Parsed::generate_key().unwrap();
        let pem = Parsed::make(wanted, &key).unwrap();
        serde_json::from_value(json!({
            "metadata": {"name": "c", "uid": "u", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "request": skiff_api::defaults::base64(pem.as_bytes()),
                "signerName": signer, "username": user, "groups": groups, "usages": usages,
            },
        }))
        .unwrap()
    }

    pub(in super::super) const CLIENT: &[&str] = &["digital signature", "client auth"];
    const BOOTSTRAP: (&str, &[&str]) = ("system:bootstrap:abcdef", &["system:bootstrappers"]);
    const NODE_1: (&str, &[&str]) = ("system:node:n1", &["system:nodes"]);

    #[test]
    fn clients_are_recognized_by_exactly_what_they_ask_for() {
        let kinds = |signer, user, usages, wanted: &Request| -> Vec<&str> {
            let request = request(signer, user, usages, wanted);
            let parsed = super::super::parse(&request).unwrap();
            recognize(&request, &parsed)
                .iter()
                .map(|found| found.permission)
                .collect()
        };
        let node = Request::client("system:node:n1", &["system:nodes"]);
        assert_eq!(kinds(KUBELET_CLIENT, BOOTSTRAP, CLIENT, &node), ["nodeclient"]);
        assert_eq!(
            kinds(KUBELET_CLIENT, NODE_1, CLIENT, &node),
            ["selfnodeclient", "nodeclient"]
        );
        let with_encipherment = &["key encipherment", "digital signature", "client auth"];
        assert_eq!(
            kinds(KUBELET_CLIENT, BOOTSTRAP, with_encipherment, &node),
            ["nodeclient"]
        );
        let none: [&str; 0] = [];
        assert_eq!(kinds(API_CLIENT, BOOTSTRAP, CLIENT, &node), none);
        assert_eq!(kinds(KUBELET_CLIENT, BOOTSTRAP, &["client auth"], &node), none);
        assert_eq!(
            kinds(
                KUBELET_CLIENT,
                BOOTSTRAP,
                &["digital signature", "client auth", "server auth"],
                &node
            ),
            none
        );
        for groups in [&[][..], &["system:masters"], &["system:nodes", "system:masters"]] {
            let wanted = Request::client("system:node:n1", groups);
            assert_eq!(kinds(KUBELET_CLIENT, BOOTSTRAP, CLIENT, &wanted), none, "{groups:?}");
        }
        let mut named = node.clone();
        named.dns_names.push("kubernetes".to_owned());
        assert_eq!(kinds(KUBELET_CLIENT, BOOTSTRAP, CLIENT, &named), none);
        let person = Request::client("joe", &["system:nodes"]);
        assert_eq!(kinds(KUBELET_CLIENT, BOOTSTRAP, CLIENT, &person), none);

        let proxy = Request::client("system:kube-proxy", &[]);
        assert_eq!(kinds(API_CLIENT, BOOTSTRAP, CLIENT, &proxy), ["kubeproxyclient"]);
        assert_eq!(kinds(API_CLIENT, NODE_1, CLIENT, &proxy), ["kubeproxyclient"]);
        let ingress = Request::client("system:skiff-ingress", &[]);
        assert_eq!(kinds(API_CLIENT, NODE_1, CLIENT, &ingress), ["skiffingressclient"]);
        // Each its own next one, and nobody else's.
        assert_eq!(
            kinds(API_CLIENT, ("system:kube-proxy", &[]), CLIENT, &proxy),
            ["selfkubeproxyclient"]
        );
        assert_eq!(
            kinds(API_CLIENT, ("system:skiff-ingress", &[]), CLIENT, &ingress),
            ["selfskiffingressclient"]
        );
        assert_eq!(kinds(API_CLIENT, ("system:kube-proxy", &[]), CLIENT, &ingress), none);
        assert_eq!(
            kinds(KUBELET_CLIENT, ("system:kube-proxy", &[]), CLIENT, &node),
            ["nodeclient"]
        );
        assert_eq!(kinds(API_CLIENT, ("joe", &["dev"]), CLIENT, &proxy), none);
        assert_eq!(kinds(API_CLIENT, ("system:node:n1", &["dev"]), CLIENT, &proxy), none);
        let grouped = Request::client("system:kube-proxy", &["system:masters"]);
        assert_eq!(kinds(API_CLIENT, NODE_1, CLIENT, &grouped), none);
        let mut named = proxy.clone();
        named.ip_addresses.push("192.0.2.1".parse().unwrap());
        assert_eq!(kinds(API_CLIENT, NODE_1, CLIENT, &named), none);
        assert_eq!(
            kinds(API_CLIENT, NODE_1, &["digital signature", "server auth"], &proxy),
            none
        );
        assert_eq!(
            kinds(
                API_CLIENT,
                NODE_1,
                CLIENT,
                &Request::client("system:kube-scheduler", &[])
            ),
            none
        );
    }
}
