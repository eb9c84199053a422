//! Phases `upload-config` and `bootstrap-token`: what the cluster must know for machines to join it. Names are kubeadm's.

use serde_json::{Value, json};
use skiff_pki::Kubeconfig;

use crate::config::Cluster;
use crate::token::NODE_GROUP;

/// Anybody who asks may read `cluster-info`: whoever joins knows nothing yet.
const ANONYMOUS: &str = "system:anonymous";

/// An object, and the collection that it belongs to.
pub(crate) type Object = (String, Value);

/// What is bound to identities that `init` hands out.
pub(crate) fn identities() -> Vec<Object> {
    let user = |name: &str| json!([{ "apiGroup": RBAC, "kind": "User", "name": name }]);
    vec![
        cluster_binding(
            "kubeadm:cluster-admins",
            "cluster-admin",
            &group("kubeadm:cluster-admins"),
        ),
        cluster_binding(
            "skiff:apiserver-kubelet-client",
            "system:kubelet-api-admin",
            &user("kube-apiserver-kubelet-client"),
        ),
    ]
}

/// What a joining machine reads, and who may; without a proxy no node runs one.
pub(crate) fn configuration(cluster: &Cluster, kubelet: &Value, proxy: Option<&Value>) -> Vec<Object> {
    let joining = group(NODE_GROUP);
    let nodes = json!([joining[0], group("system:nodes")[0]]);
    let reads = |role: &str, map: &str, subjects: &Value| {
        [
            role_to_read("kube-system", role, "configmaps", map),
            binding("kube-system", role, subjects),
        ]
    };
    let mut objects = vec![
        config_map(
            "kubeadm-config",
            json!({ "ClusterConfiguration": text(&cluster_configuration(cluster)) }),
        ),
        config_map("kubelet-config", json!({ "kubelet": text(kubelet) })),
    ];
    objects.extend(proxy.map(|proxy| {
        let data = json!({ "config.conf": text(proxy), "network": cluster.network });
        config_map("kube-proxy", data)
    }));
    objects.extend(reads("kubeadm:nodes-kubeadm-config", "kubeadm-config", &nodes));
    objects.extend(reads("kubeadm:kubelet-config", "kubelet-config", &nodes));
    objects.extend(reads("kube-proxy", "kube-proxy", &joining));
    objects
}

/// What holders of bootstrap tokens may, and where the cluster's authority is found.
pub(crate) fn joining(server: &str, ca_pem: &str) -> Vec<Object> {
    let joining = group(NODE_GROUP);
    let nodes = |role: &str, verb: &str| {
        let object = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": { "name": role },
            "rules": [{ "apiGroups": [""], "resources": ["nodes"], "verbs": [verb] }],
        });
        [(cluster_roles(), object), cluster_binding(role, role, &joining)]
    };
    let [get, get_binding] = nodes("kubeadm:get-nodes", "get");
    // Whoever joins compares its address with those of all nodes.
    let [list, list_binding] = nodes("skiff:list-nodes", "list");
    let anonymous = json!([{ "apiGroup": RBAC, "kind": "User", "name": ANONYMOUS }]);
    let approve = |what: &str| format!("system:certificates.k8s.io:certificatesigningrequests:{what}");
    let reader = "kubeadm:bootstrap-signer-clusterinfo";
    vec![
        get,
        get_binding,
        list,
        list_binding,
        cluster_binding("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", &joining),
        cluster_binding("kubeadm:node-autoapprove-bootstrap", &approve("nodeclient"), &joining),
        cluster_binding(
            "kubeadm:node-autoapprove-certificate-rotation",
            &approve("selfnodeclient"),
            &group("system:nodes"),
        ),
        role_to_read("kube-public", reader, "configmaps", "cluster-info"),
        binding("kube-public", reader, &anonymous),
        cluster_info(server, ca_pem),
    ]
}

/// Who may read the keys that are kept for further control planes; they are encrypted.
pub(crate) fn for_control_planes(secret: &str) -> Vec<Object> {
    let role = "kubeadm:kubeadm-certs";
    vec![
        role_to_read("kube-system", role, "secrets", secret),
        binding("kube-system", role, &group(NODE_GROUP)),
    ]
}

/// Where the server is and whom to trust, for whoever holds a token to check the signature of. The signature is a controller's.
fn cluster_info(server: &str, ca_pem: &str) -> Object {
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": "cluster-info", "namespace": "kube-public" },
        "data": { "kubeconfig": Kubeconfig::anonymous(server, ca_pem).to_yaml() },
    });
    ("/api/v1/namespaces/kube-public/configmaps".to_owned(), object)
}

/// The cluster as kubeadm's kind describes it: what tools look for.
fn cluster_configuration(cluster: &Cluster) -> Value {
    let mut configuration = json!({
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "ClusterConfiguration",
        "apiServer": { "certSANs": cluster.cert_sans },
        "networking": {
            "dnsDomain": cluster.dns_domain,
            "podSubnet": cluster.pod_subnet,
            "serviceSubnet": cluster.service_subnet,
        },
    });
    if let Some(endpoint) = &cluster.endpoint {
        configuration["controlPlaneEndpoint"] = endpoint.to_string().into();
    }
    if let Some(etcd) = &cluster.etcd {
        configuration["etcd"] = json!({ "external": etcd });
    }
    configuration
}

const RBAC: &str = "rbac.authorization.k8s.io";

fn rbac(rest: &str) -> String {
    format!("/apis/{RBAC}/v1/{rest}")
}

fn cluster_roles() -> String {
    rbac("clusterroles")
}

fn group(name: &str) -> Value {
    json!([{ "apiGroup": RBAC, "kind": "Group", "name": name }])
}

fn cluster_binding(name: &str, role: &str, subjects: &Value) -> Object {
    let object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": { "name": name },
        "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": role },
        "subjects": subjects,
    });
    (rbac("clusterrolebindings"), object)
}

/// A Role of this name that reads one object.
fn role_to_read(namespace: &str, name: &str, resource: &str, object: &str) -> Object {
    let object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": { "name": name, "namespace": namespace },
        "rules": [{ "apiGroups": [""], "resources": [resource], "resourceNames": [object], "verbs": ["get"] }],
    });
    (rbac(&format!("namespaces/{namespace}/roles")), object)
}

/// Binds a Role to subjects under the Role's own name.
fn binding(namespace: &str, role: &str, subjects: &Value) -> Object {
    let object = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": { "name": role, "namespace": namespace },
        "roleRef": { "apiGroup": RBAC, "kind": "Role", "name": role },
        "subjects": subjects,
    });
    (rbac(&format!("namespaces/{namespace}/rolebindings")), object)
}

fn config_map(name: &str, data: Value) -> Object {
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": name, "namespace": "kube-system" },
        "data": data,
    });
    ("/api/v1/namespaces/kube-system/configmaps".to_owned(), object)
}

fn text(value: &Value) -> String {
    serde_saphyr::to_string(value).unwrap_or_else(|_| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Init, InitFlags};

    #[test]
    fn kubeadms_names_are_there() {
        let cluster = Init::new(InitFlags::default(), None).unwrap().cluster;
        let objects = [
            identities(),
            configuration(&cluster, &json!({ "kind": "KubeletConfiguration" }), Some(&json!({}))),
            joining("https://a:6443", "PEM"),
            for_control_planes("kubeadm-certs"),
        ]
        .concat();
        let names: Vec<_> = objects
            .iter()
            .filter_map(|(_, object)| object["metadata"]["name"].as_str())
            .collect();
        for name in [
            "cluster-info",
            "kubelet-config",
            "kubeadm-config",
            "kubeadm:get-nodes",
            "kubeadm:kubeadm-certs",
            "kubeadm:node-autoapprove-bootstrap",
            "kubeadm:bootstrap-signer-clusterinfo",
        ] {
            assert!(names.contains(&name), "{name}");
        }
        for (collection, object) in &objects {
            // Each goes where its namespace is.
            if let Some(namespace) = object["metadata"]["namespace"].as_str() {
                assert!(
                    collection.contains(&format!("/namespaces/{namespace}/")),
                    "{collection}"
                );
            }
        }
    }

    #[test]
    fn without_a_proxy_who_joins_is_told_that_there_is_none() {
        let cluster = Init::new(InitFlags::default(), None).unwrap().cluster;
        let kinds = |proxy: Option<&Value>| {
            let objects = configuration(&cluster, &json!({}), proxy).into_iter();
            let objects = objects.filter(|(_, object)| object["metadata"]["name"] == "kube-proxy");
            objects.map(|(_, object)| object["kind"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(kinds(Some(&json!({}))), ["ConfigMap", "Role", "RoleBinding"]);
        // Who may not read a map cannot tell that there is none.
        assert_eq!(kinds(None), ["Role", "RoleBinding"]);
    }

    #[test]
    fn cluster_info_has_no_credentials() {
        let (_, object) = cluster_info("https://a:6443", "PEM");
        let text = object["data"]["kubeconfig"].as_str().unwrap();
        assert!(text.contains("https://a:6443") && !text.contains("client-"), "{text}");
    }
}
