//! Whether a container runs again after its end: by its restart rules, its own policy, or its pod's.

use skiff_api::k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod};

use crate::pod::{self, Role};

/// Whether a container that has ended with `code` runs again.
pub(crate) fn after(pod: &Pod, role: Role, spec: &Container, code: i32) -> bool {
    match role {
        Role::Sidecar => true,
        Role::Ephemeral => false,
        // What it was to do is done.
        Role::Init if code == 0 => false,
        Role::Init | Role::Main => {
            let mut rules = spec.restart_policy_rules.iter().flatten();
            rules.any(|rule| restarts(rule) && matches(rule, code))
                || match policy(pod, spec) {
                    "Always" => true,
                    "OnFailure" => code != 0,
                    _ => false,
                }
        }
    }
}

/// Whether there is an end after which a main container runs again.
pub(crate) fn ever(pod: &Pod, spec: &Container) -> bool {
    policy(pod, spec) != "Never" || spec.restart_policy_rules.iter().flatten().any(restarts)
}

fn policy<'a>(pod: &'a Pod, spec: &'a Container) -> &'a str {
    let own = spec.restart_policy.as_deref().filter(|policy| !policy.is_empty());
    own.unwrap_or_else(|| pod::restart_policy(pod))
}

fn restarts(rule: &ContainerRestartRule) -> bool {
    rule.action == "Restart"
}

fn matches(rule: &ContainerRestartRule, code: i32) -> bool {
    rule.exit_codes.as_ref().is_some_and(|exit| {
        let among = exit.values.iter().flatten().any(|value| *value == code);
        match exit.operator.as_str() {
            "In" => among,
            "NotIn" => !among,
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    fn rule(operator: &str, values: &[i32]) -> Value {
        json!({"action": "Restart", "exitCodes": {"operator": operator, "values": values}})
    }

    fn container(policy: Option<&str>, rules: &[Value]) -> Container {
        let mut container = json!({"name": "c", "restartPolicyRules": rules});
        if let Some(policy) = policy {
            container["restartPolicy"] = policy.into();
        }
        serde_json::from_value(container).unwrap()
    }

    #[test]
    fn rules_come_before_the_containers_policy_and_that_before_the_pods() {
        let cases = [
            ("Always", None, vec![], 0, true),
            ("OnFailure", None, vec![], 0, false),
            ("OnFailure", None, vec![], 1, true),
            ("Never", None, vec![], 1, false),
            ("Never", Some("Always"), vec![], 0, true),
            ("Never", Some("OnFailure"), vec![], 1, true),
            ("Always", Some("Never"), vec![], 1, false),
            ("Always", Some("OnFailure"), vec![], 0, false),
            ("Never", Some("Never"), vec![rule("In", &[3, 42])], 42, true),
            ("Never", Some("Never"), vec![rule("In", &[3, 42])], 1, false),
            ("Never", Some("Never"), vec![rule("NotIn", &[0, 1])], 2, true),
            ("Never", Some("Never"), vec![rule("NotIn", &[0, 1])], 1, false),
            (
                "Never",
                Some("Never"),
                vec![rule("In", &[1]), rule("In", &[2])],
                2,
                true,
            ),
            ("Never", Some("OnFailure"), vec![rule("In", &[0])], 0, true),
            ("Never", Some("Never"), vec![rule("Above", &[1])], 2, false),
        ];
        for (of_pod, own, rules, code, again) in cases {
            let (pod, spec) = (pod(&json!({"restartPolicy": of_pod})), container(own, &rules));
            let what = format!("{of_pod} {own:?} {rules:?} {code}");
            assert_eq!(after(&pod, Role::Main, &spec, code), again, "{what}");
            assert_eq!(after(&pod, Role::Init, &spec, code), again && code != 0, "{what}, init");
            assert!(after(&pod, Role::Sidecar, &spec, code) && !after(&pod, Role::Ephemeral, &spec, code));
        }
    }

    #[test]
    fn a_rule_makes_a_container_one_that_may_run_again() {
        let never = pod(&json!({"restartPolicy": "Never"}));
        assert!(!ever(&never, &container(None, &[])));
        assert!(!ever(&pod(&json!({})), &container(Some("Never"), &[])));
        assert!(ever(&never, &container(Some("OnFailure"), &[])));
        assert!(ever(&never, &container(Some("Never"), &[rule("In", &[1])])));
    }
}
