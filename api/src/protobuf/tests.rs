use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::schema;

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
    out
}

fn bytes(number: u64, content: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

fn number(number: u64, value: i64) -> Vec<u8> {
    [varint(number << 3), varint(value.cast_unsigned())].concat()
}

fn enveloped(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let names = [bytes(1, version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    [
        MAGIC.to_vec(),
        bytes(1, &names),
        bytes(2, raw),
        bytes(3, b""),
        bytes(4, b""),
    ]
    .concat()
}

fn kind(group: &str, name: &str) -> Arc<Type> {
    Arc::clone(schema().kind(group, "v1", name).unwrap())
}

#[test]
fn config_map() {
    let metadata = [bytes(1, b"a"), bytes(3, b"default"), bytes(8, b""), number(7, 0)].concat();
    let entry = [bytes(1, b"key"), bytes(2, b"value")].concat();
    let binary = [bytes(1, b"raw"), bytes(2, &[0, 255])].concat();
    let raw = [bytes(1, &metadata), bytes(2, &entry), bytes(3, &binary)].concat();
    let object = decode(&enveloped("v1", "ConfigMap", &raw), &kind("", "ConfigMap")).unwrap();
    assert_eq!(
        object,
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "a", "namespace": "default", "creationTimestamp": null, "generation": 0},
            "data": {"key": "value"}, "binaryData": {"raw": "AP8="}})
    );
}

#[test]
fn embedded_messages_are_flat_in_json() {
    // Volume{name=1, volumeSource=2{emptyDir=2}}, the source's fields stand beside the name in JSON.
    let volume = [bytes(1, b"v"), bytes(2, &bytes(2, &[]))].concat();
    let raw = bytes(2, &bytes(1, &volume));
    let object = decode(&enveloped("v1", "Pod", &raw), &kind("", "Pod")).unwrap();
    assert_eq!(object["spec"]["volumes"], json!([{"name": "v", "emptyDir": {}}]));
}

#[test]
fn numbers_quantities_and_either() {
    // ServicePort{name=1, protocol=2, port=3, targetPort=4{type, intVal, strVal}}
    let target = [number(1, 1), bytes(3, b"web")].concat();
    let port = [number(3, 80), bytes(4, &target)].concat();
    let raw = bytes(2, &bytes(1, &port));
    let service = decode(&enveloped("v1", "Service", &raw), &kind("", "Service")).unwrap();
    assert_eq!(service["spec"]["ports"], json!([{"port": 80, "targetPort": "web"}]));

    let deployment = decode(
        &enveloped("apps/v1", "Deployment", &bytes(2, &number(1, -1))),
        &kind("apps", "Deployment"),
    );
    assert_eq!(deployment.unwrap()["spec"]["replicas"], -1);

    let limit = [bytes(1, b"cpu"), bytes(2, &bytes(1, b"500m"))].concat();
    let raw = bytes(2, &bytes(1, &limit));
    let quota = decode(&enveloped("v1", "ResourceQuota", &raw), &kind("", "ResourceQuota")).unwrap();
    assert_eq!(quota["spec"]["hard"], json!({"cpu": "500m"}));
}

#[test]
fn times() {
    // LeaseSpec{holderIdentity=1, leaseDurationSeconds=2, acquireTime=3, renewTime=4}
    let time = [number(1, 1_767_225_600), number(2, 5_000)].concat();
    let raw = bytes(2, &[bytes(3, &time), bytes(4, &[])].concat());
    let lease = decode(
        &enveloped("coordination.k8s.io/v1", "Lease", &raw),
        &kind("coordination.k8s.io", "Lease"),
    );
    assert_eq!(
        lease.unwrap()["spec"],
        json!({"acquireTime": "2026-01-01T00:00:00.000005Z", "renewTime": null})
    );
}

#[test]
fn refusals() {
    let pod = kind("", "Pod");
    for (body, error) in [
        (b"{}".to_vec(), Error::NoPrefix),
        ([MAGIC, &[0x12, 0x7f]].concat(), Error::Truncated),
        ([MAGIC, &[0x0b]].concat(), Error::WireType(3)),
        (enveloped("v1", "Pod", &number(1, 5)), Error::Mismatch),
        (enveloped("v1", "Pod", &bytes(1, &bytes(1, &[0xff]))), Error::Text),
    ] {
        assert_eq!(decode(&body, &pod), Err(error));
    }
}

#[test]
fn bombs_end_early() {
    // JSONSchemaProps.not = 28 holds another one, and so on.
    let mut nested = Vec::new();
    for _ in 0..1000 {
        nested = bytes(28, &nested);
    }
    // CustomResourceDefinition.spec=2.versions=7.schema=4.openAPIV3Schema=1
    let raw = bytes(2, &bytes(7, &bytes(4, &bytes(1, &nested))));
    let body = enveloped("apiextensions.k8s.io/v1", "CustomResourceDefinition", &raw);
    let crd = kind("apiextensions.k8s.io", "CustomResourceDefinition");
    assert_eq!(decode(&body, &crd), Err(Error::TooDeep));
}

proptest! {
    #[test]
    fn never_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let body = [MAGIC, &body].concat();
        decode(&body, &kind("", "Pod")).ok();
    }
}
