use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::schema;

fn kind(group: &str, kind: &str) -> &'static Type {
    schema().kind(group, "v1", kind).unwrap()
}

fn strict(group: &str, kind_name: &str, value: &Value) -> Result<Value, String> {
    decode(
        value.to_string().as_bytes(),
        kind(group, kind_name),
        FieldValidation::Strict,
    )
    .map(|d| d.value)
    .map_err(|e| e.to_string())
}

fn pod(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec})
}

#[test]
fn keeps_what_it_knows_and_drops_what_is_empty() {
    let given = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "namespace": "", "creationTimestamp": null, "labels": {}, "annotations": {"x": null}},
        "spec": {
            "containers": [{"name": "c", "image": "i", "resources": {}, "command": [], "stdin": false,
                "ports": [{"containerPort": 80, "hostPort": 0}],
                "securityContext": {"privileged": false}}],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "terminationGracePeriodSeconds": 0, "hostNetwork": false, "nodeName": "",
        },
        "status": {},
    });
    assert_eq!(
        strict("", "Pod", &given).unwrap(),
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "annotations": {"x": ""}},
            "spec": {
                "containers": [{"name": "c", "image": "i", "resources": {}, "ports": [{"containerPort": 80}],
                    "securityContext": {"privileged": false}}],
                "volumes": [{"name": "v", "emptyDir": {}}],
                "terminationGracePeriodSeconds": 0,
            },
            "status": {},
        })
    );
}

#[test]
fn scalars_become_canonical() {
    let given = pod(json!({"containers": [{"name": "c", "resources": {
        "limits": {"cpu": 0.5, "memory": "1024Mi", "x": 1}, "requests": {"cpu": " 100m "},
    }, "livenessProbe": {"httpGet": {"port": "http"}}, "readinessProbe": {"httpGet": {"port": 80}}}]}));
    let container = strict("", "Pod", &given).unwrap()["spec"]["containers"][0].clone();
    assert_eq!(
        container["resources"]["limits"],
        json!({"cpu": "500m", "memory": "1Gi", "x": "1"})
    );
    assert_eq!(container["resources"]["requests"], json!({"cpu": "100m"}));
    assert_eq!(container["livenessProbe"]["httpGet"]["port"], json!("http"));
    assert_eq!(container["readinessProbe"]["httpGet"]["port"], json!(80));
    let lease = json!({"spec": {"renewTime": "2026-01-02T04:04:05.6789+01:00"}, "metadata": {"creationTimestamp": "2026-01-02T03:04:05.5Z"}});
    let lease = strict("coordination.k8s.io", "Lease", &lease).unwrap();
    assert_eq!(lease["spec"]["renewTime"], "2026-01-02T03:04:05.678900Z");
    assert_eq!(lease["metadata"]["creationTimestamp"], "2026-01-02T03:04:05Z");
}

#[test]
fn wrong_types_have_upstream_texts() {
    let deployment = |spec: Value| ("apps", "Deployment", json!({"spec": spec}));
    let container = |fields: Value| ("", "Pod", pod(json!({"containers": [fields]})));
    let cases = [
        (
            deployment(json!({"replicas": "3"})),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            deployment(json!({"replicas": 1.5})),
            "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            deployment(json!({"replicas": 9_999_999_999i64})),
            "json: cannot unmarshal number 9999999999 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            deployment(json!({"paused": "true"})),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.paused of type bool",
        ),
        (
            deployment(json!([])),
            "json: cannot unmarshal array into Go struct field Deployment.spec of type v1.DeploymentSpec",
        ),
        (
            deployment(json!("x")),
            "json: cannot unmarshal string into Go struct field Deployment.spec of type v1.DeploymentSpec",
        ),
        (
            container(json!({"image": 1})),
            "json: cannot unmarshal number into Go struct field Container.spec.containers.image of type string",
        ),
        (
            container(json!({"imagePullPolicy": {}})),
            "json: cannot unmarshal object into Go struct field Container.spec.containers.imagePullPolicy of type v1.PullPolicy",
        ),
        (
            container(json!({"command": "sh"})),
            "json: cannot unmarshal string into Go struct field Container.spec.containers.command of type []string",
        ),
        (
            container(json!({"env": {"A": "b"}})),
            "json: cannot unmarshal object into Go struct field Container.spec.containers.env of type []v1.EnvVar",
        ),
        (
            container(json!({"env": [{"name": "A", "value": 5}]})),
            "json: cannot unmarshal number into Go struct field EnvVar.spec.containers.env.value of type string",
        ),
        (
            container(json!({"resources": {"limits": {"cpu": "x"}}})),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            ("", "Pod", json!({"metadata": {"labels": {"a": 1}}})),
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            ("", "Pod", json!({"metadata": {"labels": "a"}})),
            "json: cannot unmarshal string into Go struct field ObjectMeta.metadata.labels of type map[string]string",
        ),
        (
            ("", "Pod", json!([])),
            "json: cannot unmarshal array into Go value of type v1.Pod",
        ),
        (
            ("", "Secret", json!({"data": {"a": "%"}})),
            "illegal base64 data at input byte 0",
        ),
        (
            ("", "Service", json!({"spec": {"ports": [{"targetPort": true}]}})),
            "json: cannot unmarshal bool into Go value of type int32",
        ),
        (
            ("", "Pod", json!({"metadata": {"deletionTimestamp": "soon"}})),
            r#"parsing time "soon" as "2006-01-02T15:04:05Z07:00": cannot parse "soon" as "2006""#,
        ),
    ];
    for ((group, kind, value), text) in cases {
        assert_eq!(strict(group, kind, &value).unwrap_err(), text);
    }
}

#[test]
fn unknown_and_duplicate_fields() {
    let body =
        br#"{"apiVersion":"v1","kind":"Pod","foo":1,"metadata":{"name":"a","name":"b","labels":{"x":"1","x":"2"}},
        "spec":{"containers":[{"name":"c"},{"name":"d","bar":{"deep":[1]},"image":null,"image":"i"}]}}"#;
    let texts = [
        r#"unknown field "foo""#,
        r#"duplicate field "metadata.name""#,
        r#"duplicate field "metadata.labels.x""#,
        r#"unknown field "spec.containers[1].bar""#,
        r#"duplicate field "spec.containers[1].image""#,
    ];
    let pod = kind("", "Pod");
    let warned = decode(body, pod, FieldValidation::Warn).unwrap();
    assert_eq!(warned.warnings, texts);
    assert_eq!(warned.value["metadata"], json!({"name": "b", "labels": {"x": "2"}}));
    assert_eq!(
        warned.value["spec"]["containers"][1],
        json!({"name": "d", "image": "i"})
    );
    assert_eq!(decode(body, pod, FieldValidation::Ignore).unwrap().warnings, [""; 0]);
    let error = decode(body, pod, FieldValidation::Strict).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("strict decoding error: {}", texts.join(", "))
    );
    let status = error.to_status("Pod", "v1", body);
    assert!(
        status
            .message
            .starts_with(r#"Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown"#),
        "{status}"
    );
}

#[test]
fn case_matters() {
    let given = json!({"spec": {"Replicas": 1}});
    assert_eq!(
        strict("apps", "Deployment", &given).unwrap_err(),
        r#"strict decoding error: unknown field "spec.Replicas""#
    );
}

#[test]
fn custom_resource_schemas() {
    let given = json!({"spec": {"group": "g", "scope": "Namespaced", "names": {"plural": "p", "kind": "P"}, "versions": [{
        "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
            "type": "object", "additionalProperties": false,
            "properties": {
                "a": {"type": "array", "items": {"type": "string", "nonsense": 1}},
                "b": {"additionalProperties": {"x-kubernetes-int-or-string": true}, "default": {"any": [1, null]}},
            },
        }},
    }]}});
    let decoded = strict("apiextensions.k8s.io", "CustomResourceDefinition", &given).unwrap();
    let schema = &decoded["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert_eq!(schema["additionalProperties"], json!(false));
    assert_eq!(schema["properties"]["a"]["items"], json!({"type": "string"}));
    assert_eq!(schema["properties"]["b"]["default"], json!({"any": [1, null]}));
}

#[test]
fn syntax() {
    let pod = kind("", "Pod");
    for bad in ["", "{", "{\"a\":}", "nope", "{} {}"] {
        let error = decode(bad.as_bytes(), pod, FieldValidation::Warn).unwrap_err();
        assert!(matches!(error, DecodeError::Syntax(_)), "{bad}: {error}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(decode(deep.as_bytes(), pod, FieldValidation::Warn).is_err());
    let status = decode(b"{\"a\":", pod, FieldValidation::Warn)
        .unwrap_err()
        .to_status("Pod", "v1", b"{\"a\":");
    assert!(
        status
            .message
            .starts_with("the object provided is unrecognized (must be of type Pod): "),
        "{status}"
    );
}

#[test]
fn yaml() {
    let text = b"
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {on: 'yes', x: &x w, z: *x}}
spec:
  hostNetwork: yes
  containers:
  - name: c
    foo: 1
  volumes:
  - name: v
    configMap: {defaultMode: 0644}
";
    let decoded = decode_yaml(text, kind("", "Pod"), FieldValidation::Warn).unwrap();
    assert_eq!(
        decoded.value["metadata"]["labels"],
        json!({"on": "yes", "x": "w", "z": "w"})
    );
    assert_eq!(decoded.value["spec"]["hostNetwork"], json!(true));
    assert_eq!(
        decoded.value["spec"]["volumes"][0]["configMap"]["defaultMode"],
        json!(420)
    );
    assert_eq!(decoded.warnings, [r#"unknown field "spec.containers[0].foo""#]);
    assert!(decode_yaml(b"a: [", kind("", "Pod"), FieldValidation::Warn).is_err());
}

#[test]
fn yaml_bombs_are_refused() {
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..10 {
        let refs = vec![format!("*a{}", i - 1); 10].join(",");
        bomb.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
    }
    assert!(decode_yaml(bomb.as_bytes(), kind("", "ConfigMap"), FieldValidation::Ignore).is_err());
    assert!(parse_yaml(bomb.as_bytes()).is_err());
}

#[test]
fn fields_fit_the_duplicate_check() {
    assert!(schema().types().all(|t| t.fields().len() <= 128));
}

proptest! {
    #[test]
    fn decoding_twice_changes_nothing(value in any_json()) {
        for name in ["Pod", "Service", "Secret", "Node"] {
            if let Ok(once) = conform(value.clone(), kind("", name), FieldValidation::Ignore) {
                let twice = conform(once.value.clone(), kind("", name), FieldValidation::Strict).unwrap();
                prop_assert_eq!(once.value, twice.value);
            }
        }
    }

    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        decode(&bytes, kind("", "Pod"), FieldValidation::Warn).ok();
        decode_yaml(&bytes, kind("", "Pod"), FieldValidation::Warn).ok();
    }
}

/// Documents that look like objects often enough to get past the first levels.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-5i64..100).prop_map(Value::from),
        "[a-z0-9]{0,3}".prop_map(Value::from),
        Just(json!("1Gi")),
        Just(json!("2026-01-02T03:04:05Z")),
    ];
    let key = prop::sample::select(vec![
        "metadata",
        "spec",
        "status",
        "labels",
        "name",
        "containers",
        "ports",
        "port",
        "targetPort",
        "data",
        "resources",
        "limits",
        "volumes",
        "emptyDir",
        "env",
        "value",
        "selector",
        "conditions",
        "type",
        "zzz",
    ]);
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}
