//! Who may ask for which certificates, and who may decide about them: upstream's roles, and kubeadm's bindings of them.

use serde_json::{Value, json};
use skiff_api::bootstrap_tokens::{CLUSTER_INFO, CLUSTER_INFO_NAMESPACE, NODE_GROUP};

use super::{BINDINGS, Line, ROLE_BINDINGS, ROLES_OF_NAMESPACES, Resource, Subjects, binding, in_namespace, role};

const CERTIFICATES: &str = "certificates.k8s.io";
const PREFIX: &str = "system:certificates.k8s.io:";

/// What the approver asks of whoever wants a certificate to be approved by itself.
const SELF_SERVICE: [&str; 6] = [
    "nodeclient",
    "selfnodeclient",
    "kubeproxyclient",
    "selfkubeproxyclient",
    "skiffingressclient",
    "selfskiffingressclient",
];
/// What whoever renews a client certificate of their own needs.
const RENEWER: &str = "system:skiff-certificate-renewer";
/// Signers that people may be let decide about.
const APPROVERS: [(&str, &str); 4] = [
    ("kube-apiserver-client", "kubernetes.io/kube-apiserver-client"),
    (
        "kube-apiserver-client-kubelet",
        "kubernetes.io/kube-apiserver-client-kubelet",
    ),
    ("kubelet-serving", "kubernetes.io/kubelet-serving"),
    ("legacy-unknown", "kubernetes.io/legacy-unknown"),
];

pub(super) fn roles() -> Vec<Value> {
    let own = SELF_SERVICE.map(|what| {
        let resource = format!("certificatesigningrequests/{what}");
        let rule = json!({"verbs": ["create"], "apiGroups": [CERTIFICATES], "resources": [resource]});
        role(&format!("{PREFIX}certificatesigningrequests:{what}"), vec![rule])
    });
    let approvers = APPROVERS.map(|(name, signer)| {
        let rule =
            json!({"verbs": ["approve"], "apiGroups": [CERTIFICATES], "resources": ["signers"], "resourceNames": [signer]});
        role(&format!("{PREFIX}{name}-approver"), vec![rule])
    });
    let bootstrapper = Line::new("create get list watch", CERTIFICATES, "certificatesigningrequests");
    let get_nodes = Line::new("get", "", "nodes");
    own.into_iter()
        .chain(approvers)
        .chain([
            role("system:node-bootstrapper", vec![bootstrapper.rule()]),
            role(RENEWER, vec![bootstrapper.rule()]),
            role("kubeadm:get-nodes", vec![get_nodes.rule()]),
        ])
        .collect()
}

/// Machines that come with a token may ask for a node's certificate, nodes for a next one of their own, both for one of a proxy; a proxy
/// and an ingress for a next one of their own.
/// A certificate of the ingress reads every Secret: nobody gets one by themselves until somebody binds that role.
pub(super) fn bindings() -> Vec<(Resource, Value)> {
    let request = |what: &str| format!("{PREFIX}certificatesigningrequests:{what}");
    [
        (
            "kubeadm:kubelet-bootstrap",
            "system:node-bootstrapper".to_owned(),
            NODE_GROUP,
        ),
        ("kubeadm:get-nodes", "kubeadm:get-nodes".to_owned(), NODE_GROUP),
        ("kubeadm:node-autoapprove-bootstrap", request("nodeclient"), NODE_GROUP),
        (
            "kubeadm:node-autoapprove-certificate-rotation",
            request("selfnodeclient"),
            "system:nodes",
        ),
        ("skiff:node-autoapprove-proxy", request("kubeproxyclient"), NODE_GROUP),
        (
            "skiff:node-autoapprove-proxy-rotation",
            request("kubeproxyclient"),
            "system:nodes",
        ),
    ]
    .map(|(name, role, group)| (BINDINGS, binding(name, &role, &Subjects::Groups(&[group]))))
    .into_iter()
    .chain(
        [
            ("skiff:renew-proxy", RENEWER.to_owned(), "system:kube-proxy"),
            ("skiff:renew-ingress", RENEWER.to_owned(), "system:skiff-ingress"),
            (
                "skiff:autoapprove-proxy-rotation",
                request("selfkubeproxyclient"),
                "system:kube-proxy",
            ),
            (
                "skiff:autoapprove-ingress-rotation",
                request("selfskiffingressclient"),
                "system:skiff-ingress",
            ),
        ]
        .map(|(name, role, user)| (BINDINGS, binding(name, &role, &Subjects::User(user)))),
    )
    .collect()
}

/// Everybody may read which cluster this is: that is what a machine that joins begins with.
pub(super) fn cluster_info() -> [(Resource, Value); 2] {
    const NAME: &str = "kubeadm:bootstrap-signer-clusterinfo";
    let rule = Line::new("get", "", "configmaps").only(CLUSTER_INFO);
    let mut role = role(NAME, vec![rule.rule()]);
    let mut binding = binding(NAME, NAME, &Subjects::User("system:anonymous"));
    binding["roleRef"]["kind"] = "Role".into();
    in_namespace(&mut role, "Role", CLUSTER_INFO_NAMESPACE);
    in_namespace(&mut binding, "RoleBinding", CLUSTER_INFO_NAMESPACE);
    [(ROLES_OF_NAMESPACES, role), (ROLE_BINDINGS, binding)]
}
