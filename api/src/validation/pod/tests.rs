use serde_json::json;

use super::super::testing::{created, updated};
use super::*;

fn pod(change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]}});
    change(&mut pod["spec"]);
    crate::defaults::apply("", "v1", "Pod", &mut pod);
    pod
}

fn check(cases: &[(Value, &[&str])]) {
    for (fields, messages) in cases {
        let pod = pod(|spec| {
            for (key, value) in fields.as_object().unwrap() {
                spec[key] = value.clone();
            }
        });
        assert_eq!(created("", "Pod", &pod), *messages, "{fields}");
    }
}

#[test]
fn containers() {
    check(&[
        (json!({}), &[]),
        (json!({"containers": []}), &["spec.containers: Required value"]),
        (
            json!({"containers": [{"image": "x"}, {"name": "c"}]}),
            &[
                "spec.containers[0].name: Required value",
                "spec.containers[1].image: Required value",
            ],
        ),
        (
            json!({"containers": [{"name": "c", "image": "x"}, {"name": "c", "image": "x"}]}),
            &["spec.containers[1].name: Duplicate value: \"c\""],
        ),
        (
            json!({"initContainers": [{"name": "c", "image": "x", "livenessProbe": {"exec": {"command": ["a"]}}}]}),
            &[
                "spec.initContainers[0].name: Duplicate value: \"c\"",
                "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
            ],
        ),
        (
            json!({"containers": [{"name": "c", "image": " x", "imagePullPolicy": "Sometimes"}]}),
            &[
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
                "spec.containers[0].image: Invalid value: \" x\": must not have leading or trailing whitespace",
            ],
        ),
    ]);
}

#[test]
fn ports_and_env() {
    let container = |fields: Value| {
        let mut container = json!({"name": "c", "image": "x"});
        for (key, value) in fields.as_object().unwrap() {
            container[key] = value.clone();
        }
        json!({"containers": [container]})
    };
    check(&[
        (
            container(json!({"ports": [{"containerPort": 0}, {"containerPort": 70000, "protocol": "ICMP"}]})),
            &[
                "spec.containers[0].ports[0].containerPort: Required value",
                "spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.containers[0].ports[1].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ],
        ),
        (
            container(json!({"ports": [{"containerPort": 1, "hostPort": 80}, {"containerPort": 2, "hostPort": 80}]})),
            &["spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//80\""],
        ),
        (
            container(json!({"env": [{"name": ""}, {"name": "a=b"}, {"name": "A", "valueFrom": {}}]})),
            &[
                "spec.containers[0].env[0].name: Required value",
                "spec.containers[0].env[1].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
                "spec.containers[0].env[2].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
            ],
        ),
        (
            container(
                json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}},
                {"name": "B", "value": "b", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
            ),
            &[
                "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"status.phase\": error converting fieldPath: field label not supported: status.phase",
                "spec.containers[0].env[1].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            ],
        ),
        (
            container(
                json!({"env": [{"name": "A", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "../a"}}}]}),
            ),
            &[
                "spec.containers[0].env[0].valueFrom.fileKeyRef.key: Required value",
                "spec.containers[0].env[0].valueFrom.fileKeyRef.path: Invalid value: \"../a\": must not contain '..'",
            ],
        ),
        (
            container(json!({"resources": {"requests": {"cpu": "2", "memory": "-1"}, "limits": {"cpu": "1"}}})),
            &[
                "spec.containers[0].resources.requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ],
        ),
        (
            container(json!({"livenessProbe": {}, "readinessProbe": {"exec": {}, "tcpSocket": {"port": 1}}})),
            &[
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
                "spec.containers[0].readinessProbe.exec.command: Required value",
                "spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
            ],
        ),
    ]);
}

#[test]
fn restart_policies_of_containers() {
    let container = |fields: Value| {
        let mut container = json!({"name": "c", "image": "x"});
        for (key, value) in fields.as_object().unwrap() {
            container[key] = value.clone();
        }
        json!({"containers": [container]})
    };
    let rule = |operator: &str| json!({"action": "Restart", "exitCodes": {"operator": operator, "values": [42]}});
    check(&[
        (
            container(json!({"restartPolicy": "Never", "restartPolicyRules": [rule("In"), rule("NotIn")]})),
            &[],
        ),
        (
            container(json!({"restartPolicyRules": [rule("In")]})),
            &[
                "spec.containers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used",
            ],
        ),
        (
            container(json!({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Stop"}, rule("Above")]})),
            &[
                "spec.containers[0].restartPolicyRules[0].action: Unsupported value: \"Stop\": supported values: \"Restart\"",
                "spec.containers[0].restartPolicyRules[0].exitCodes: Required value: must be specified",
                "spec.containers[0].restartPolicyRules[1].exitCodes.operator: Unsupported value: \"Above\": supported values: \"In\", \"NotIn\"",
            ],
        ),
        (
            container(json!({"restartPolicy": "Never", "restartPolicyRules": vec![rule("In"); 21]})),
            &["spec.containers[0].restartPolicyRules: Too many: 21: must have at most 20 items"],
        ),
        (
            json!({"initContainers": [{"name": "i", "image": "x", "restartPolicyRules": [rule("In")]}]}),
            &[
                "spec.initContainers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used",
            ],
        ),
    ]);
}

#[test]
fn only_what_may_run_again_leaves_its_end() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let cases = [
        ("Never", json!({}), 1, false),
        ("OnFailure", json!({}), 0, false),
        ("OnFailure", json!({}), 1, true),
        ("Never", json!({"restartPolicy": "Always"}), 0, true),
        ("Always", json!({"restartPolicy": "Never"}), 1, false),
        (
            "Never",
            json!({"restartPolicy": "Never", "restartPolicyRules": rules}),
            42,
            true,
        ),
        (
            "Never",
            json!({"restartPolicy": "Never", "restartPolicyRules": rules}),
            43,
            false,
        ),
    ];
    for (policy, fields, code, allowed) in cases {
        let with = |state: Value| {
            let mut pod = pod(|spec| {
                spec["restartPolicy"] = policy.into();
                for (key, value) in fields.as_object().unwrap() {
                    spec["containers"][0][key] = value.clone();
                }
            });
            pod["status"] = json!({"containerStatuses": [{"name": "c", "state": state}]});
            pod
        };
        let mut errors = Errors::new();
        let (old, new) = (
            with(json!({"terminated": {"exitCode": code}})),
            with(json!({"running": {}})),
        );
        subresource("status", &new, &old, &mut errors);
        assert_eq!(errors.is_empty(), allowed, "{policy} {fields} {code}");
    }
}

#[test]
fn a_mirror_is_one_all_its_life() {
    let with = |shown: Option<&str>, node: &str| {
        let mut pod = pod(|spec| spec["nodeName"] = node.into());
        if let Some(shown) = shown {
            pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": shown});
        }
        pod
    };
    let path = "metadata.annotations[kubernetes.io/config.mirror]";
    assert_eq!(created("", "Pod", &with(Some("a"), "n")), [""; 0]);
    assert_eq!(
        created("", "Pod", &with(Some("a"), "")),
        [format!(
            "{path}: Invalid value: \"a\": must set spec.nodeName if mirror pod annotation is set"
        )]
    );
    let cases = [
        (None, None, None),
        (Some("a"), Some("a"), None),
        (None, Some("a"), Some("may not add mirror pod annotation")),
        (
            Some("a"),
            Some("b"),
            Some("may not remove or update mirror pod annotation"),
        ),
        (Some("a"), None, Some("may not remove or update mirror pod annotation")),
    ];
    for (before, after, detail) in cases {
        let expected: Vec<String> = detail
            .iter()
            .map(|detail| format!("{path}: Forbidden: {detail}"))
            .collect();
        assert_eq!(
            updated("", "Pod", &with(after, "n"), &with(before, "n")),
            expected,
            "{before:?} {after:?}"
        );
    }
}

#[test]
fn volumes() {
    check(&[
        (
            json!({"containers": [{"name": "c", "image": "x", "volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "w", "mountPath": "/a"}]}],
                "volumes": [{"name": "v"}]}),
            &[
                "spec.containers[0].volumeMounts[1].name: Not found: \"w\"",
                "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
            ],
        ),
        (
            json!({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}, {"name": "v", "secret": {}}]}),
            &[
                "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
                "spec.volumes[1].secret.secretName: Required value",
                "spec.volumes[1].name: Duplicate value: \"v\"",
            ],
        ),
        (
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/a/../b"}}]}),
            &["spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"],
        ),
    ]);
}

#[test]
fn pod_wide() {
    check(&[
        (
            json!({"restartPolicy": "Sometimes"}),
            &[
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ],
        ),
        (
            json!({"tolerations": [{"operator": "Equal"}, {"key": "a", "operator": "Exists", "value": "b"}]}),
            &[
                "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
                "spec.tolerations[1].operator: Invalid value: {\"key\":\"a\",\"operator\":\"Exists\",\"value\":\"b\"}: value must be empty when `operator` is 'Exists'",
            ],
        ),
        (
            json!({"dnsPolicy": "None"}),
            &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
        ),
        (
            json!({"activeDeadlineSeconds": 0}),
            &["spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive"],
        ),
        (
            json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}}}),
            &[
                "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value: can not be empty",
            ],
        ),
        (
            json!({"securityContext": {"runAsUser": -1}}),
            &["spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive"],
        ),
        (
            json!({"hostNetwork": true, "containers": [{"name": "c", "image": "x", "ports": [{"containerPort": 80, "hostPort": 81}]}]}),
            &[
                "spec.containers[0].ports[0].containerPort: Invalid value: 80: must match `hostPort` when `hostNetwork` is true",
            ],
        ),
    ]);
}

#[test]
fn updates() {
    let old = pod(|_| {});
    let image = pod(|spec| spec["containers"][0]["image"] = "nginx:2".into());
    let mut image = image;
    image["spec"]["containers"][0]["imagePullPolicy"] = "Always".into();
    assert_eq!(updated("", "Pod", &image, &old), [""; 0]);

    let tolerated = pod(|spec| spec["tolerations"] = json!([{"operator": "Exists"}]));
    assert_eq!(updated("", "Pod", &tolerated, &old), [""; 0]);

    let moved = pod(|spec| spec["nodeName"] = "elsewhere".into());
    assert_eq!(
        updated("", "Pod", &moved, &old),
        [
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
          `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
          `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\nspec.nodeName: null -> \"elsewhere\""
        ]
    );

    let more = pod(|spec| spec["containers"] = json!([{"name": "c", "image": "nginx"}, {"name": "d", "image": "x"}]));
    assert_eq!(
        updated("", "Pod", &more, &old),
        ["spec.containers: Forbidden: pod updates may not add or remove containers"]
    );
}

#[test]
fn templates_leave_metadata_out_of_paths() {
    let mut errors = Errors::new();
    let bad = json!({"metadata": {"labels": {"a": "-"}}, "spec": pod(|_| {})["spec"]});
    template(&Path::root("spec").child("template"), &bad, &mut errors);
    assert!(
        errors[0]
            .to_string()
            .starts_with("spec.template.labels: Invalid value: \"-\": a valid label must be")
    );
}
