//! The schema against k8s-openapi, which was made from another source (OpenAPI): every field that one knows, the other keeps.

use k8s_openapi as k;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::*;
use crate::decode::{FieldValidation, conform};

/// A value with every field set, as far as recursion allows.
fn full(shape: &Shape, above: &mut Vec<Name>) -> Option<Value> {
    Some(match shape {
        Shape::Scalar(scalar) => of_scalar(*scalar),
        Shape::Named(named) => named
            .values
            .first()
            .map_or_else(|| of_scalar(named.scalar), |v| v.to_string().into()),
        Shape::List(list) => json!([full(&list.item, above)?]),
        Shape::Map(map) => json!({"k": full(&map.value, above)?}),
        Shape::Struct(ty) => full_type(ty, above)?,
    })
}

fn full_type(ty: &Type, above: &mut Vec<Name>) -> Option<Value> {
    if above.contains(&ty.name) {
        return None;
    }
    above.push(ty.name.clone());
    let value = if ty.union {
        ty.field("schema").and_then(|f| full(&f.shape, above))
    } else {
        let fields = ty.fields().iter();
        let fields: Map<String, Value> = fields
            .filter_map(|f| Some((f.name.to_string(), full(&f.shape, above)?)))
            .collect();
        let mut object = Value::Object(fields);
        if let Some((group, version, kind, _)) = schema().kinds().find(|k| k.3.name == ty.name) {
            let api_version = if group.is_empty() {
                version.to_owned()
            } else {
                format!("{group}/{version}")
            };
            object["apiVersion"] = api_version.into();
            object["kind"] = kind.into();
        }
        Some(object)
    };
    above.pop();
    value
}

fn of_scalar(scalar: Scalar) -> Value {
    match scalar {
        Scalar::Bool => json!(true),
        Scalar::Int32 | Scalar::Int64 | Scalar::Uint32 | Scalar::IntOrString => json!(1),
        Scalar::Float64 => json!(1.5),
        Scalar::String => json!("x"),
        Scalar::Bytes => json!("eA=="),
        Scalar::Quantity => json!("1"),
        Scalar::Time => json!("2026-01-02T03:04:05Z"),
        Scalar::MicroTime => json!("2026-01-02T03:04:05.000006Z"),
        Scalar::Duration => json!("1s"),
        Scalar::RawExtension | Scalar::FieldsV1 | Scalar::Json => json!({"a": 1}),
    }
}

fn check<K: k::Resource + DeserializeOwned + Serialize>() {
    let ty = schema()
        .kind(K::GROUP, K::VERSION, K::KIND)
        .unwrap_or_else(|| panic!("{} is missing", K::KIND));
    let sample = full_type(ty, &mut Vec::new()).unwrap();
    let decoded = conform(sample.clone(), ty, FieldValidation::Strict).unwrap_or_else(|e| panic!("{}: {e}", K::KIND));
    assert_eq!(decoded.value, sample, "{}: decoding changed it", K::KIND);
    let typed: K = serde_json::from_value(sample.clone()).unwrap_or_else(|e| panic!("{}: {e}", K::KIND));
    let back = serde_json::to_value(&typed).unwrap();
    let mut differences = Vec::new();
    compare(K::KIND, &sample, &back, &mut differences);
    assert!(differences.is_empty(), "{differences:#?}");
}

fn compare(path: &str, ours: &Value, theirs: &Value, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                compare(&format!("{path}.{key}"), value, b.get(key).unwrap_or(&Value::Null), out);
            }
        }
        (Value::Array(a), Value::Array(b)) => a.iter().zip(b).for_each(|(a, b)| compare(path, a, b, out)),
        _ if ours != theirs => out.push(format!("{path}: {ours} here, {theirs} there")),
        _ => {}
    }
}

macro_rules! check_all {
    ($($group:ident::$version:ident::{$($kind:ident),+ $(,)?}),+ $(,)?) => {
        $($(check::<k::api::$group::$version::$kind>();)+)+
    };
}

#[test]
fn agrees_with_openapi() {
    check_all! {
        core::v1::{
            ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
            PodTemplate, ReplicationController, ResourceQuota, Secret, Service, ServiceAccount, Binding,
        },
        apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
        batch::v1::{CronJob, Job},
        autoscaling::v2::{HorizontalPodAutoscaler},
        autoscaling::v1::{Scale},
        admissionregistration::v1::{
            MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
            ValidatingWebhookConfiguration,
        },
        authentication::v1::{TokenRequest, TokenReview},
        authorization::v1::{LocalSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview},
        certificates::v1::{CertificateSigningRequest},
        coordination::v1::{Lease},
        discovery::v1::{EndpointSlice},
        events::v1::{Event},
        networking::v1::{IPAddress, Ingress, IngressClass, NetworkPolicy, ServiceCIDR},
        node::v1::{RuntimeClass},
        policy::v1::{Eviction, PodDisruptionBudget},
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
        scheduling::v1::{PriorityClass},
        storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass},
    }
    check::<k::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition>();
}

#[test]
fn every_kind_decodes_its_own_sample() {
    for (group, version, kind, ty) in schema().kinds() {
        let sample = full_type(ty, &mut Vec::new()).unwrap();
        let decoded = conform(sample.clone(), ty, FieldValidation::Strict);
        let decoded = decoded.unwrap_or_else(|e| panic!("{group}/{version} {kind}: {e}"));
        assert_eq!(decoded.value, sample, "{group}/{version} {kind}");
    }
}
