//! The built-in resources, as data.

use super::{Resource, Subresource};

const ALL: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
/// Namespaces are deleted one by one.
const NOT_COLLECTIONS: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const GET: &[&str] = &["get"];
const GET_LIST: &[&str] = &["get", "list"];
const UPDATE: &[&str] = &["update"];
const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];
const CONNECT: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

/// Most resources: all verbs, in a namespace.
const fn namespaced(
    (group, version): (&'static str, &'static str),
    (plural, singular, kind): (&'static str, &'static str, &'static str),
) -> Resource {
    Resource {
        group,
        version,
        plural,
        singular,
        kind,
        short_names: &[],
        categories: &[],
        namespaced: true,
        subresources: &[],
        verbs: ALL,
    }
}

/// The same without a namespace.
const fn cluster(group: (&'static str, &'static str), names: (&'static str, &'static str, &'static str)) -> Resource {
    Resource {
        namespaced: false,
        ..namespaced(group, names)
    }
}

const fn status(group: &'static str, version: &'static str, kind: &'static str) -> Subresource {
    Subresource {
        name: "status",
        group,
        version,
        kind,
        verbs: GET_PATCH_UPDATE,
    }
}

const fn scale() -> Subresource {
    Subresource {
        name: "scale",
        group: "autoscaling",
        version: "v1",
        kind: "Scale",
        verbs: GET_PATCH_UPDATE,
    }
}

const fn sub(
    name: &'static str,
    (group, version, kind): (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource {
        name,
        group,
        version,
        kind,
        verbs,
    }
}

const CORE: (&str, &str) = ("", "v1");
const ADMISSIONREGISTRATION: (&str, &str) = ("admissionregistration.k8s.io", "v1");
const APIEXTENSIONS: (&str, &str) = ("apiextensions.k8s.io", "v1");
const APPS: (&str, &str) = ("apps", "v1");
const AUTHENTICATION: (&str, &str) = ("authentication.k8s.io", "v1");
const AUTHORIZATION: (&str, &str) = ("authorization.k8s.io", "v1");
const AUTOSCALING: (&str, &str) = ("autoscaling", "v2");
const AUTOSCALING_V1: (&str, &str) = ("autoscaling", "v1");
const BATCH: (&str, &str) = ("batch", "v1");
const CERTIFICATES: (&str, &str) = ("certificates.k8s.io", "v1");
const COORDINATION: (&str, &str) = ("coordination.k8s.io", "v1");
const DISCOVERY: (&str, &str) = ("discovery.k8s.io", "v1");
const EVENTS: (&str, &str) = ("events.k8s.io", "v1");
const NETWORKING: (&str, &str) = ("networking.k8s.io", "v1");
const NODE: (&str, &str) = ("node.k8s.io", "v1");
const POLICY: (&str, &str) = ("policy", "v1");
const RBAC: (&str, &str) = ("rbac.authorization.k8s.io", "v1");
const SCHEDULING: (&str, &str) = ("scheduling.k8s.io", "v1");
const STORAGE: (&str, &str) = ("storage.k8s.io", "v1");

pub(super) const RESOURCES: &[Resource] = &[
    Resource {
        verbs: CREATE,
        ..namespaced(CORE, ("bindings", "binding", "Binding"))
    },
    Resource {
        short_names: &["cs"],
        verbs: GET_LIST,
        ..cluster(CORE, ("componentstatuses", "componentstatus", "ComponentStatus"))
    },
    Resource {
        short_names: &["cm"],
        ..namespaced(CORE, ("configmaps", "configmap", "ConfigMap"))
    },
    Resource {
        short_names: &["ep"],
        ..namespaced(CORE, ("endpoints", "endpoints", "Endpoints"))
    },
    Resource {
        short_names: &["ev"],
        ..namespaced(CORE, ("events", "event", "Event"))
    },
    Resource {
        short_names: &["limits"],
        ..namespaced(CORE, ("limitranges", "limitrange", "LimitRange"))
    },
    Resource {
        short_names: &["ns"],
        subresources: &[
            sub("finalize", ("", "v1", "Namespace"), UPDATE),
            status("", "v1", "Namespace"),
        ],
        verbs: NOT_COLLECTIONS,
        ..cluster(CORE, ("namespaces", "namespace", "Namespace"))
    },
    Resource {
        short_names: &["no"],
        subresources: &[
            sub("proxy", ("", "v1", "NodeProxyOptions"), PROXY),
            status("", "v1", "Node"),
        ],
        ..cluster(CORE, ("nodes", "node", "Node"))
    },
    Resource {
        short_names: &["pvc"],
        subresources: &[status("", "v1", "PersistentVolumeClaim")],
        ..namespaced(
            CORE,
            (
                "persistentvolumeclaims",
                "persistentvolumeclaim",
                "PersistentVolumeClaim",
            ),
        )
    },
    Resource {
        short_names: &["pv"],
        subresources: &[status("", "v1", "PersistentVolume")],
        ..cluster(CORE, ("persistentvolumes", "persistentvolume", "PersistentVolume"))
    },
    Resource {
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            sub("attach", ("", "v1", "PodAttachOptions"), CONNECT),
            sub("binding", ("", "v1", "Binding"), CREATE),
            sub("ephemeralcontainers", ("", "v1", "Pod"), GET_PATCH_UPDATE),
            sub("eviction", ("policy", "v1", "Eviction"), CREATE),
            sub("exec", ("", "v1", "PodExecOptions"), CONNECT),
            sub("log", ("", "v1", "Pod"), GET),
            sub("portforward", ("", "v1", "PodPortForwardOptions"), CONNECT),
            sub("proxy", ("", "v1", "PodProxyOptions"), PROXY),
            sub("resize", ("", "v1", "Pod"), GET_PATCH_UPDATE),
            status("", "v1", "Pod"),
        ],
        ..namespaced(CORE, ("pods", "pod", "Pod"))
    },
    namespaced(CORE, ("podtemplates", "podtemplate", "PodTemplate")),
    Resource {
        short_names: &["rc"],
        categories: &["all"],
        subresources: &[scale(), status("", "v1", "ReplicationController")],
        ..namespaced(
            CORE,
            (
                "replicationcontrollers",
                "replicationcontroller",
                "ReplicationController",
            ),
        )
    },
    Resource {
        short_names: &["quota"],
        subresources: &[status("", "v1", "ResourceQuota")],
        ..namespaced(CORE, ("resourcequotas", "resourcequota", "ResourceQuota"))
    },
    namespaced(CORE, ("secrets", "secret", "Secret")),
    Resource {
        short_names: &["sa"],
        subresources: &[sub("token", ("authentication.k8s.io", "v1", "TokenRequest"), CREATE)],
        ..namespaced(CORE, ("serviceaccounts", "serviceaccount", "ServiceAccount"))
    },
    Resource {
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[
            sub("proxy", ("", "v1", "ServiceProxyOptions"), PROXY),
            status("", "v1", "Service"),
        ],
        ..namespaced(CORE, ("services", "service", "Service"))
    },
    Resource {
        categories: &["api-extensions"],
        ..cluster(
            ADMISSIONREGISTRATION,
            (
                "mutatingadmissionpolicies",
                "mutatingadmissionpolicy",
                "MutatingAdmissionPolicy",
            ),
        )
    },
    Resource {
        categories: &["api-extensions"],
        ..cluster(
            ADMISSIONREGISTRATION,
            (
                "mutatingadmissionpolicybindings",
                "mutatingadmissionpolicybinding",
                "MutatingAdmissionPolicyBinding",
            ),
        )
    },
    Resource {
        categories: &["api-extensions"],
        ..cluster(
            ADMISSIONREGISTRATION,
            (
                "mutatingwebhookconfigurations",
                "mutatingwebhookconfiguration",
                "MutatingWebhookConfiguration",
            ),
        )
    },
    Resource {
        categories: &["api-extensions"],
        subresources: &[status(
            "admissionregistration.k8s.io",
            "v1",
            "ValidatingAdmissionPolicy",
        )],
        ..cluster(
            ADMISSIONREGISTRATION,
            (
                "validatingadmissionpolicies",
                "validatingadmissionpolicy",
                "ValidatingAdmissionPolicy",
            ),
        )
    },
    Resource {
        categories: &["api-extensions"],
        ..cluster(
            ADMISSIONREGISTRATION,
            (
                "validatingadmissionpolicybindings",
                "validatingadmissionpolicybinding",
                "ValidatingAdmissionPolicyBinding",
            ),
        )
    },
    Resource {
        categories: &["api-extensions"],
        ..cluster(
            ADMISSIONREGISTRATION,
            (
                "validatingwebhookconfigurations",
                "validatingwebhookconfiguration",
                "ValidatingWebhookConfiguration",
            ),
        )
    },
    Resource {
        short_names: &["crd", "crds"],
        categories: &["api-extensions"],
        subresources: &[status("apiextensions.k8s.io", "v1", "CustomResourceDefinition")],
        ..cluster(
            APIEXTENSIONS,
            (
                "customresourcedefinitions",
                "customresourcedefinition",
                "CustomResourceDefinition",
            ),
        )
    },
    namespaced(
        APPS,
        ("controllerrevisions", "controllerrevision", "ControllerRevision"),
    ),
    Resource {
        short_names: &["ds"],
        categories: &["all"],
        subresources: &[status("apps", "v1", "DaemonSet")],
        ..namespaced(APPS, ("daemonsets", "daemonset", "DaemonSet"))
    },
    Resource {
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[scale(), status("apps", "v1", "Deployment")],
        ..namespaced(APPS, ("deployments", "deployment", "Deployment"))
    },
    Resource {
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[scale(), status("apps", "v1", "ReplicaSet")],
        ..namespaced(APPS, ("replicasets", "replicaset", "ReplicaSet"))
    },
    Resource {
        short_names: &["sts"],
        categories: &["all"],
        subresources: &[scale(), status("apps", "v1", "StatefulSet")],
        ..namespaced(APPS, ("statefulsets", "statefulset", "StatefulSet"))
    },
    Resource {
        verbs: CREATE,
        ..cluster(
            AUTHENTICATION,
            ("selfsubjectreviews", "selfsubjectreview", "SelfSubjectReview"),
        )
    },
    Resource {
        verbs: CREATE,
        ..cluster(AUTHENTICATION, ("tokenreviews", "tokenreview", "TokenReview"))
    },
    Resource {
        verbs: CREATE,
        ..namespaced(
            AUTHORIZATION,
            (
                "localsubjectaccessreviews",
                "localsubjectaccessreview",
                "LocalSubjectAccessReview",
            ),
        )
    },
    Resource {
        verbs: CREATE,
        ..cluster(
            AUTHORIZATION,
            (
                "selfsubjectaccessreviews",
                "selfsubjectaccessreview",
                "SelfSubjectAccessReview",
            ),
        )
    },
    Resource {
        verbs: CREATE,
        ..cluster(
            AUTHORIZATION,
            (
                "selfsubjectrulesreviews",
                "selfsubjectrulesreview",
                "SelfSubjectRulesReview",
            ),
        )
    },
    Resource {
        verbs: CREATE,
        ..cluster(
            AUTHORIZATION,
            ("subjectaccessreviews", "subjectaccessreview", "SubjectAccessReview"),
        )
    },
    Resource {
        short_names: &["hpa"],
        categories: &["all"],
        subresources: &[status("autoscaling", "v2", "HorizontalPodAutoscaler")],
        ..namespaced(
            AUTOSCALING,
            (
                "horizontalpodautoscalers",
                "horizontalpodautoscaler",
                "HorizontalPodAutoscaler",
            ),
        )
    },
    Resource {
        short_names: &["hpa"],
        categories: &["all"],
        subresources: &[status("autoscaling", "v1", "HorizontalPodAutoscaler")],
        ..namespaced(
            AUTOSCALING_V1,
            (
                "horizontalpodautoscalers",
                "horizontalpodautoscaler",
                "HorizontalPodAutoscaler",
            ),
        )
    },
    Resource {
        short_names: &["cj"],
        categories: &["all"],
        subresources: &[status("batch", "v1", "CronJob")],
        ..namespaced(BATCH, ("cronjobs", "cronjob", "CronJob"))
    },
    Resource {
        categories: &["all"],
        subresources: &[status("batch", "v1", "Job")],
        ..namespaced(BATCH, ("jobs", "job", "Job"))
    },
    Resource {
        short_names: &["csr"],
        subresources: &[
            sub(
                "approval",
                ("certificates.k8s.io", "v1", "CertificateSigningRequest"),
                GET_PATCH_UPDATE,
            ),
            status("certificates.k8s.io", "v1", "CertificateSigningRequest"),
        ],
        ..cluster(
            CERTIFICATES,
            (
                "certificatesigningrequests",
                "certificatesigningrequest",
                "CertificateSigningRequest",
            ),
        )
    },
    namespaced(COORDINATION, ("leases", "lease", "Lease")),
    namespaced(DISCOVERY, ("endpointslices", "endpointslice", "EndpointSlice")),
    Resource {
        short_names: &["ev"],
        ..namespaced(EVENTS, ("events", "event", "Event"))
    },
    cluster(NETWORKING, ("ingressclasses", "ingressclass", "IngressClass")),
    Resource {
        short_names: &["ing"],
        subresources: &[status("networking.k8s.io", "v1", "Ingress")],
        ..namespaced(NETWORKING, ("ingresses", "ingress", "Ingress"))
    },
    Resource {
        short_names: &["ip"],
        ..cluster(NETWORKING, ("ipaddresses", "ipaddress", "IPAddress"))
    },
    Resource {
        short_names: &["netpol"],
        ..namespaced(NETWORKING, ("networkpolicies", "networkpolicy", "NetworkPolicy"))
    },
    Resource {
        subresources: &[status("networking.k8s.io", "v1", "ServiceCIDR")],
        ..cluster(NETWORKING, ("servicecidrs", "servicecidr", "ServiceCIDR"))
    },
    cluster(NODE, ("runtimeclasses", "runtimeclass", "RuntimeClass")),
    Resource {
        short_names: &["pdb"],
        subresources: &[status("policy", "v1", "PodDisruptionBudget")],
        ..namespaced(
            POLICY,
            ("poddisruptionbudgets", "poddisruptionbudget", "PodDisruptionBudget"),
        )
    },
    cluster(
        RBAC,
        ("clusterrolebindings", "clusterrolebinding", "ClusterRoleBinding"),
    ),
    cluster(RBAC, ("clusterroles", "clusterrole", "ClusterRole")),
    namespaced(RBAC, ("rolebindings", "rolebinding", "RoleBinding")),
    namespaced(RBAC, ("roles", "role", "Role")),
    Resource {
        short_names: &["pc"],
        ..cluster(SCHEDULING, ("priorityclasses", "priorityclass", "PriorityClass"))
    },
    cluster(STORAGE, ("csidrivers", "csidriver", "CSIDriver")),
    cluster(STORAGE, ("csinodes", "csinode", "CSINode")),
    namespaced(
        STORAGE,
        ("csistoragecapacities", "csistoragecapacity", "CSIStorageCapacity"),
    ),
    Resource {
        short_names: &["sc"],
        ..cluster(STORAGE, ("storageclasses", "storageclass", "StorageClass"))
    },
    Resource {
        subresources: &[status("storage.k8s.io", "v1", "VolumeAttachment")],
        ..cluster(STORAGE, ("volumeattachments", "volumeattachment", "VolumeAttachment"))
    },
    Resource {
        short_names: &["vac"],
        ..cluster(
            STORAGE,
            (
                "volumeattributesclasses",
                "volumeattributesclass",
                "VolumeAttributesClass",
            ),
        )
    },
];
