//! How far a node's agent gets: the Node authorization mode and the NodeRestriction admission plugin.

use crate::cluster::Cluster;

const NODE: &str = "system:node:n1";

const OBJECTS: &str = r#"---
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {kubernetes.io/hostname: n1}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: kube-node-lease}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: default}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: other}}
---
{apiVersion: v1, kind: Secret, metadata: {name: mine}}
---
{apiVersion: v1, kind: Secret, metadata: {name: theirs}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: mine}}
---
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: mine}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}
---
{apiVersion: v1, kind: PersistentVolume, metadata: {name: mine}, spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, hostPath: {path: /mine}, claimRef: {namespace: default, name: mine}}}
---
apiVersion: v1
kind: Pod
metadata: {name: on-n1}
spec:
  nodeName: n1
  volumes:
    - {name: s, secret: {secretName: mine}}
    - {name: v, persistentVolumeClaim: {claimName: mine}}
  containers: [{name: c, image: c, envFrom: [{configMapRef: {name: mine}}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: on-n2}
spec:
  nodeName: n2
  volumes: [{name: s, secret: {secretName: theirs}}]
  containers: [{name: c, image: c}]
"#;

async fn start() -> Cluster {
    let cluster = Cluster::start().await;
    cluster.apply(OBJECTS).await;
    cluster.kubeconfig(NODE, &["system:nodes"]);
    cluster
}

/// What kubectl says as the agent of n1.
async fn ask(cluster: &Cluster, arguments: &[&str], input: &str) -> String {
    let output = cluster.run(NODE, arguments, input).await;
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_reads_what_its_pods_name() {
    let cluster = start().await;
    const OWN: &str = "--field-selector=spec.nodeName=n1";
    for (arguments, allowed) in [
        (&["get", "secret", "mine"][..], true),
        (&["get", "secret", "theirs"], false),
        (&["get", "secrets"], false),
        (&["get", "secrets", "--field-selector=metadata.name=mine"], true),
        (&["get", "secrets", "--field-selector=metadata.name=theirs"], false),
        (&["get", "secret", "mine", "-n", "kube-system"], false),
        (&["get", "configmap", "mine"], true),
        (&["get", "configmap", "other"], false),
        // By a role, claims and volumes may all be read (decision 14).
        (&["get", "pvc", "mine"], true),
        (&["get", "pv", "mine"], true),
        (&["get", "pod", "on-n1"], true),
        (&["get", "pod", "on-n2"], false),
        (&["get", "pods", "-A", OWN], true),
        (&["get", "pods", "-A"], false),
        (&["get", "node", "n1"], true),
        (&["get", "node", "n2"], false),
        (&["get", "nodes"], false),
        (&["get", "services"], true),
        (&["get", "deployments"], false),
        (&["get", "namespaces"], false),
    ] {
        let said = ask(&cluster, arguments, "").await;
        assert_eq!(!said.contains("Forbidden"), allowed, "{arguments:?}: {said}");
    }
    // Another group, same name: not a node.
    cluster.kubeconfig(NODE, &["developers"]);
    let said = ask(&cluster, &["get", "secret", "mine"], "").await;
    assert!(said.contains("Forbidden"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_changes_itself_and_its_pods_only() {
    let cluster = start().await;
    // kubectl's patch of a status reads it first, which a node may not: the bare request, with the object as it is.
    let put = async |path: &str, change: (&str, &str)| {
        let object = cluster.kubectl(&["get", "--raw", path]).await;
        assert!(object.contains(change.0), "{object}");
        let object = object.replacen(change.0, change.1, 1);
        ask(
            &cluster,
            &["replace", "--raw", &format!("{path}/status"), "-f", "-"],
            &object,
        )
        .await
    };
    const PODS: &str = "/api/v1/namespaces/default/pods";
    let running = (r#""phase":"Pending""#, r#""phase":"Running""#);
    let labelled = (r#""name":"on-n1""#, r#""labels":{"a":"b"},"name":"on-n1""#);
    let named = (r#""kind":"Node""#, r#""kind":"Node""#);
    for (path, change, expected) in [
        (format!("{PODS}/on-n1"), running, "Running"),
        (
            format!("{PODS}/on-n2"),
            running,
            "can only update pod status for pods with spec.nodeName set to itself",
        ),
        (
            format!("{PODS}/on-n1"),
            labelled,
            "cannot update labels through pod status",
        ),
        ("/api/v1/nodes/n1".to_owned(), named, "Node"),
        (
            "/api/v1/nodes/n2".to_owned(),
            named,
            "node \"n1\" is not allowed to modify node \"n2\"",
        ),
    ] {
        let said = put(&path, change).await;
        assert!(said.contains(expected), "{path} {change:?}: {said}");
    }
    for (arguments, expected) in [
        (&["label", "pod", "on-n1", "a=b"][..], "cannot patch resource \"pods\""),
        (
            &["delete", "pod", "on-n2", "--wait=false"],
            "can only delete pods with spec.nodeName set to itself",
        ),
        (&["delete", "pod", "on-n1", "--wait=false"], "deleted"),
        (&["label", "node", "n1", "team=a"], "labeled"),
        (
            &["label", "node", "n1", "node-role.kubernetes.io/control-plane="],
            "is not allowed to modify labels: node-role.kubernetes.io/control-plane",
        ),
        (
            &["label", "node", "n1", "node-restriction.kubernetes.io/a=b"],
            "is not allowed to modify labels: node-restriction.kubernetes.io/a",
        ),
        (
            &["taint", "node", "n1", "a=b:NoSchedule"],
            "is not allowed to modify taints",
        ),
        (
            &[
                "patch",
                "node/n1",
                "--type=merge",
                "-p",
                r#"{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"x","uid":"y"}]}}"#,
            ],
            "is not allowed to modify ownerReferences",
        ),
        (&["delete", "node", "n1"], "cannot delete resource \"nodes\""),
    ] {
        let said = ask(&cluster, arguments, "").await;
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_creates_only_its_own_mirror_pods() {
    let cluster = start().await;
    let uid = cluster
        .kubectl(&["get", "node", "n1", "-o", "jsonpath={.metadata.uid}"])
        .await;
    let pod = |name: &str, mirror: &str, node: &str, more: &str, owner: &str| {
        format!(
            r#"---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  annotations: {{{mirror}}}
  ownerReferences: [{{apiVersion: v1, kind: Node, name: n1, controller: true, uid: "{owner}"}}]
spec:
  nodeName: {node}
  {more}
  containers: [{{name: c, image: c}}]
"#
        )
    };
    const MIRROR: &str = "kubernetes.io/config.mirror: x";
    let secret = "volumes: [{name: v, secret: {secretName: mine}}]";
    for (manifest, expected) in [
        (pod("good", MIRROR, "n1", "", &uid), "created"),
        (pod("plain", "", "n1", "", &uid), "can only create mirror pods"),
        (
            pod("away", MIRROR, "n2", "", &uid),
            "can only create pods with spec.nodeName set to itself",
        ),
        (
            pod("greedy", MIRROR, "n1", secret, &uid),
            "can not create pods that reference secrets",
        ),
        (pod("orphan", MIRROR, "n1", "", "other"), "UID mismatch"),
    ] {
        let said = ask(&cluster, &["create", "--validate=false", "-f", "-"], &manifest).await;
        assert!(said.contains(expected), "{manifest}: {said}");
    }
}

/// Pods that mount no token for the API server.
const TOKENLESS: &str = r#"---
{apiVersion: storage.k8s.io/v1, kind: CSIDriver, metadata: {name: d}, spec: {tokenRequests: [{audience: driver}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: tokenless}
spec:
  nodeName: n1
  automountServiceAccountToken: false
  volumes: [{name: v, csi: {driver: d}}]
  containers: [{name: c, image: c}]
---
apiVersion: v1
kind: Pod
metadata: {name: vaulted}
spec:
  nodeName: n1
  automountServiceAccountToken: false
  volumes: [{name: v, projected: {sources: [{serviceAccountToken: {audience: vault, path: token}}]}}]
  containers: [{name: c, image: c}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: registry}
rules: [{apiGroups: [""], resources: ["https://registry/x"], verbs: [request-serviceaccounts-token-audience], resourceNames: [default]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: registry}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: registry}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: "system:nodes"}]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_tokens_for_its_pods_only() {
    let cluster = start().await;
    let uid = async |pod| {
        cluster
            .kubectl(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"])
            .await
    };
    let [mine, theirs] = [uid("on-n1").await, uid("on-n2").await];
    let bound = |pod: &str, uid: &str| {
        [
            "--bound-object-kind=Pod".to_owned(),
            format!("--bound-object-name={pod}"),
            format!("--bound-object-uid={uid}"),
        ]
    };
    let create = async |account: &str, more: &[String]| {
        let mut arguments = vec!["create", "token", account];
        arguments.extend(more.iter().map(String::as_str));
        ask(&cluster, &arguments, "").await
    };
    cluster.apply(TOKENLESS).await;
    let [tokenless, vaulted] = [uid("tokenless").await, uid("vaulted").await];
    let for_vault = |bound: &[String]| [bound, &["--audience=vault".to_owned()]].concat();
    for more in [
        bound("on-n1", &mine).to_vec(),
        for_vault(&bound("vaulted", &vaulted)),
        // For its volume's driver, and what a role allows.
        [&bound("tokenless", &tokenless)[..], &["--audience=driver".to_owned()]].concat(),
        [
            &bound("tokenless", &tokenless)[..],
            &["--audience=https://registry/x".to_owned()],
        ]
        .concat(),
    ] {
        let token = create("default", &more).await;
        assert_eq!(token.trim().split('.').count(), 3, "{more:?}: {token}");
    }
    for (account, more, expected) in [
        (
            "other",
            bound("on-n1", &mine).to_vec(),
            "cannot create resource \"serviceaccounts/token\"",
        ),
        ("default", Vec::new(), "node requested token not bound to a pod"),
        (
            "default",
            bound("on-n2", &theirs).to_vec(),
            "node requested token bound to a pod scheduled on a different node",
        ),
        (
            "default",
            for_vault(&bound("on-n1", &mine)),
            "audience \"vault\" not found in pod spec volume",
        ),
        (
            "default",
            for_vault(&for_vault(&bound("vaulted", &vaulted))),
            "node may only request 0 or 1 audiences",
        ),
        (
            "default",
            bound("tokenless", &tokenless).to_vec(),
            "audience \"\" not found in pod spec volume",
        ),
    ] {
        let said = create(account, &more).await;
        assert!(said.contains(expected), "{account} {more:?}: {said}");
    }
}
