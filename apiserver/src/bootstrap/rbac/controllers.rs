//! What each controller may do: one identity and one role a controller, under upstream's names.
//!
//! Where upstream's controllers update, skiff's patch: the verb stands beside it. What informers read is the manager's own right
//! (`system:kube-controller-manager`). The rights to record events are added to each.

use super::Line;

const CERTIFICATES: &str = "certificates.k8s.io";
const DISCOVERY: &str = "discovery.k8s.io";
const RBAC: &str = "rbac.authorization.k8s.io";
const STORAGE: &str = "storage.k8s.io";

/// A controller's name and its rules.
pub(super) type Controller = (&'static str, &'static [Line]);

/// Every controller with a role for the whole cluster.
pub(super) const CONTROLLERS: &[Controller] = &[
    (
        "certificate-controller",
        &[
            Line::new("delete get list watch", CERTIFICATES, "certificatesigningrequests"),
            Line::new(
                "patch update",
                CERTIFICATES,
                "certificatesigningrequests/approval certificatesigningrequests/status",
            ),
            // Upstream approves clients of kubelets only; what skiff approves beyond that is in `controllers`.
            Line::new("approve", CERTIFICATES, "signers").only(
                "kubernetes.io/kube-apiserver-client kubernetes.io/kube-apiserver-client-kubelet kubernetes.io/kubelet-serving",
            ),
            Line::new("sign", CERTIFICATES, "signers").only(
                "kubernetes.io/kube-apiserver-client kubernetes.io/kube-apiserver-client-kubelet kubernetes.io/kubelet-serving \
                 kubernetes.io/legacy-unknown",
            ),
            Line::new("create", "authorization.k8s.io", "subjectaccessreviews"),
        ],
    ),
    (
        "clusterrole-aggregation-controller",
        &[Line::new(
            "escalate get list patch update watch",
            RBAC,
            "clusterroles",
        )],
    ),
    (
        "cronjob-controller",
        &[
            Line::new("get list patch update watch", "batch", "cronjobs"),
            Line::new("create delete get list patch update watch", "batch", "jobs"),
            Line::new("patch update", "batch", "cronjobs/status"),
            Line::new("update", "batch", "cronjobs/finalizers"),
            Line::new("delete list", "", "pods"),
        ],
    ),
    (
        "daemon-set-controller",
        &[
            Line::new("get list watch", "apps", "daemonsets"),
            Line::new("patch update", "apps", "daemonsets/status"),
            Line::new("update", "apps", "daemonsets/finalizers"),
            Line::new("list watch", "", "nodes"),
            Line::new("create delete list patch watch", "", "pods"),
            Line::new("create", "", "pods/binding"),
            Line::new(
                "create delete get list patch update watch",
                "apps",
                "controllerrevisions",
            ),
        ],
    ),
    (
        "deployment-controller",
        &[
            Line::new("get list patch update watch", "apps", "deployments"),
            Line::new("patch update", "apps", "deployments/status"),
            Line::new("update", "apps", "deployments/finalizers"),
            Line::new("create delete get list patch update watch", "apps", "replicasets"),
            Line::new("get list update watch", "", "pods"),
        ],
    ),
    (
        "disruption-controller",
        &[
            Line::new("get list watch", "apps", "deployments replicasets statefulsets"),
            Line::new("get list watch", "", "replicationcontrollers"),
            Line::new("get list watch", "policy", "poddisruptionbudgets"),
            Line::new("patch update", "policy", "poddisruptionbudgets/status"),
            Line::new("patch update", "", "pods/status"),
            Line::new("get", "*", "*/scale"),
        ],
    ),
    (
        "endpoint-controller",
        &[
            Line::new("get list watch", "", "pods services"),
            Line::new("create delete get list patch update", "", "endpoints"),
            Line::new("create", "", "endpoints/restricted"),
        ],
    ),
    (
        "endpointslice-controller",
        &[
            Line::new("get list watch", "", "nodes pods services"),
            Line::new("update", "", "services/finalizers"),
            Line::new("create delete get list patch update", DISCOVERY, "endpointslices"),
            Line::new("create", DISCOVERY, "endpointslices/restricted"),
        ],
    ),
    (
        "endpointslicemirroring-controller",
        &[
            Line::new("get list watch", "", "endpoints services"),
            Line::new("update", "", "endpoints/finalizers services/finalizers"),
            Line::new("create delete get list patch update", DISCOVERY, "endpointslices"),
            Line::new("create", DISCOVERY, "endpointslices/restricted"),
        ],
    ),
    (
        "ephemeral-volume-controller",
        &[
            Line::new("update", "", "pods/finalizers"),
            Line::new("get list watch", "", "pods"),
            Line::new("create get list watch", "", "persistentvolumeclaims"),
        ],
    ),
    (
        "generic-garbage-collector",
        &[Line::new("delete get list patch update watch", "*", "*")],
    ),
    (
        "horizontal-pod-autoscaler",
        &[
            Line::new("get list patch update watch", "autoscaling", "horizontalpodautoscalers"),
            Line::new("patch update", "autoscaling", "horizontalpodautoscalers/status"),
            Line::new("get patch update", "*", "*/scale"),
            Line::new("list", "", "pods"),
            Line::new("list", "metrics.k8s.io", "pods"),
            Line::new("get list", "custom.metrics.k8s.io", "*"),
            Line::new("get list", "external.metrics.k8s.io", "*"),
        ],
    ),
    (
        "job-controller",
        &[
            Line::new("get list patch update watch", "batch", "jobs"),
            Line::new("patch update", "batch", "jobs/status"),
            Line::new("update", "batch", "jobs/finalizers"),
            Line::new("create delete list patch watch", "", "pods"),
        ],
    ),
    (
        "namespace-controller",
        &[
            Line::new("delete get list watch", "", "namespaces"),
            Line::new("patch update", "", "namespaces/finalize namespaces/status"),
            Line::new("delete deletecollection get list", "*", "*"),
        ],
    ),
    (
        "node-controller",
        &[
            Line::new("delete get list patch update watch", "", "nodes"),
            Line::new("patch update", "", "nodes/status pods/status"),
            Line::new("delete get list", "", "pods"),
        ],
    ),
    (
        "persistent-volume-binder",
        &[
            Line::new("create delete get list patch update watch", "", "persistentvolumes"),
            Line::new("patch update", "", "persistentvolumeclaims/status persistentvolumes/status"),
            Line::new("get list patch update watch", "", "persistentvolumeclaims"),
            Line::new("create delete get list watch", "", "pods"),
            Line::new("get list watch", "", "nodes"),
            Line::new("get list watch", STORAGE, "storageclasses"),
        ],
    ),
    (
        "pod-garbage-collector",
        &[
            Line::new("delete list watch", "", "pods"),
            Line::new("get list", "", "nodes"),
            Line::new("patch", "", "pods/status"),
        ],
    ),
    (
        "pv-protection-controller",
        &[Line::new("get list patch update watch", "", "persistentvolumes")],
    ),
    (
        "pvc-protection-controller",
        &[
            Line::new("get list patch update watch", "", "persistentvolumeclaims"),
            Line::new("get list watch", "", "pods"),
        ],
    ),
    (
        "replicaset-controller",
        &[
            Line::new("get list patch update watch", "apps", "replicasets"),
            Line::new("patch update", "apps", "replicasets/status"),
            Line::new("update", "apps", "replicasets/finalizers"),
            Line::new("create delete list patch watch", "", "pods"),
        ],
    ),
    (
        "replication-controller",
        &[
            Line::new("get list patch update watch", "", "replicationcontrollers"),
            Line::new("patch update", "", "replicationcontrollers/status"),
            Line::new("update", "", "replicationcontrollers/finalizers"),
            Line::new("create delete list patch watch", "", "pods"),
        ],
    ),
    (
        "resourcequota-controller",
        &[
            Line::new("list watch", "*", "*"),
            Line::new("patch update", "", "resourcequotas/status"),
        ],
    ),
    (
        "root-ca-cert-publisher",
        &[Line::new("create patch update", "", "configmaps")],
    ),
    (
        "service-account-controller",
        &[Line::new("create", "", "serviceaccounts")],
    ),
    (
        "service-controller",
        &[
            Line::new("get list patch watch", "", "services"),
            Line::new("patch update", "", "services/status"),
            Line::new("list watch", "", "nodes"),
        ],
    ),
    (
        "statefulset-controller",
        &[
            Line::new("get list watch", "apps", "statefulsets"),
            Line::new("patch update", "apps", "statefulsets/status"),
            Line::new("update", "apps", "statefulsets/finalizers"),
            Line::new("create delete get list patch update watch", "", "pods"),
            Line::new(
                "create delete get list patch update watch",
                "apps",
                "controllerrevisions",
            ),
            Line::new(
                "create delete get list patch update watch",
                "",
                "persistentvolumeclaims",
            ),
        ],
    ),
    (
        "ttl-after-finished-controller",
        &[Line::new("delete get list watch", "batch", "jobs")],
    ),
];

/// Those that work in one namespace: the namespace, the controller, its rules there.
pub(super) const NAMESPACED: &[(&str, &str, &[Line])] = &[
    (
        "kube-system",
        "bootstrap-signer",
        &[Line::new("get list watch", "", "secrets")],
    ),
    (
        "kube-public",
        "bootstrap-signer",
        &[
            Line::new("get list watch", "", "configmaps"),
            Line::new("patch update", "", "configmaps").only("cluster-info"),
        ],
    ),
    (
        "kube-system",
        "token-cleaner",
        &[Line::new("delete get list watch", "", "secrets")],
    ),
];
