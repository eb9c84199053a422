//! Evicting a pod: a deletion that asks its disruption budget first.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::{Value, json};
use skiff_api::meta;
use skiff_api::resource::Subresource;
use skiff_api::selector::LabelSelector;
use skiff_api::status::Status;

use super::{json_answer, read_body};
use crate::admission::{Operation, Review};
use crate::body::Body;
use crate::errors::Result;
use crate::registry::delete::DeleteOptions;
use crate::registry::read::Freshness;
use crate::registry::write::Update;
use crate::registry::{Options, Scope};
use crate::resources::Served;
use crate::server::{Call, Server};

/// Upstream's cap on pods that a budget remembers as being disrupted.
const MOST_DISRUPTED: usize = 2000;

/// `pods/<name>/eviction`.
pub(super) async fn evict(
    server: &Server,
    served: &Served,
    subresource: &Subresource,
    call: Call,
) -> Result<Response<Body>> {
    let options = Options::parse(&call.query)?;
    let info = call.info.clone();
    let user = Arc::clone(&call.user);
    let (eviction, warnings) = read_body(call, subresource).await?;
    let name = info.name.as_str();
    if !meta::name(&eviction).is_empty() && meta::name(&eviction) != name {
        return Err(Status::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let scope = Scope {
        served,
        namespace: &info.namespace,
        user: &user,
    };
    let mut delete = DeleteOptions::of(&eviction["deleteOptions"])?;
    delete.dry_run |= options.dry_run;
    let pod = server.registry.get(scope, name, Freshness::Consistent).await?.value();
    // Before the budget: who may not evict the pod must not use up its disruptions either.
    let review = Review {
        operation: Operation::Create,
        scope,
        subresource: Some(subresource.name),
        old: Some(&pod),
        dry_run: delete.dry_run,
    };
    server.registry.admission.validate(&review, &eviction)?;
    if needs_budget(&pod) {
        spend_budget(server, scope, &pod, delete.dry_run).await?;
    }
    server.registry.delete(scope, name, &delete).await?;
    let success = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(json_answer(StatusCode::CREATED, &success, &warnings))
}

/// A pod that runs nothing (yet, or any more) disrupts nobody.
fn needs_budget(pod: &Value) -> bool {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default();
    !matches!(phase, "Succeeded" | "Failed" | "Pending") && meta::deletion_timestamp(pod).is_none()
}

/// Takes one disruption from the budget that covers the pod, if one does.
async fn spend_budget(server: &Server, scope: Scope<'_>, pod: &Value, dry_run: bool) -> Result<()> {
    let Some(budgets) = server.registry.resources.any_version("policy", "poddisruptionbudgets") else {
        return Ok(());
    };
    let labels = meta::labels(pod);
    let covering: Vec<String> = budgets
        .cache
        .all(scope.namespace)
        .into_iter()
        .filter(|budget| {
            let budget = budget.value();
            LabelSelector::from_label_selector(budget.pointer("/spec/selector"))
                .is_ok_and(|selector| selector.matches_map(labels))
        })
        .map(|budget| budget.name().to_owned())
        .collect();
    let name = match covering.as_slice() {
        [] => return Ok(()),
        [one] => one,
        _ => {
            return Err(Status::failure(
                500,
                "InternalError",
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let budget_scope = Scope {
        served: budgets,
        ..scope
    };
    let pod_name = meta::name(pod).to_owned();
    let ready = meta::has_condition(pod, "Ready");
    let update = Update {
        name,
        subresource: Some("status"),
        change: &mut |budget| spend(budget, &pod_name, ready),
        whole: false,
    };
    let options = Options {
        dry_run,
        ..Options::default()
    };
    server.registry.update(budget_scope, update, options).await.map(|_| ())
}

/// The budget after one more disruption, or the refusal.
fn spend(budget: &Value, pod: &str, ready: bool) -> Result<Value> {
    let name = meta::name(budget);
    let number = |pointer: &str| budget.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let policy = budget
        .pointer("/spec/unhealthyPodEvictionPolicy")
        .and_then(Value::as_str);
    if !ready {
        let healthy = number("/status/currentHealthy") >= number("/status/desiredHealthy")
            && number("/status/desiredHealthy") > 0;
        if policy == Some("AlwaysAllow") || healthy {
            return Ok(budget.clone());
        }
    }
    let refuse = |why: &str| {
        Err(Status::disruption_budget(
            "Cannot evict pod as it would violate the pod's disruption budget.",
            why,
        ))
    };
    if number("/status/observedGeneration") < meta::generation(budget) {
        return refuse(&format!(
            "The disruption budget {name} is still being processed by the server."
        ))
        .map_err(|status| status.retry_after(10));
    }
    let allowed = number("/status/disruptionsAllowed");
    if allowed <= 0 {
        return refuse(&format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            number("/status/desiredHealthy"),
            number("/status/currentHealthy")
        ));
    }
    let mut spent = budget.clone();
    spent["status"]["disruptionsAllowed"] = (allowed - 1).into();
    if !spent["status"]["disruptedPods"].is_object() {
        spent["status"]["disruptedPods"] = json!({});
    }
    if spent["status"]["disruptedPods"]
        .as_object()
        .is_some_and(|pods| pods.len() >= MOST_DISRUPTED)
    {
        return refuse(&format!(
            "The disruption budget {name} has too many evictions not confirmed by the disruption controller"
        ));
    }
    spent["status"]["disruptedPods"][pod] = meta::now().into();
    Ok(spent)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::spend;

    #[test]
    fn a_budget_is_spent_one_by_one() {
        let budget = json!({
            "metadata": {"name": "b", "generation": 1},
            "status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 3, "desiredHealthy": 2},
        });
        let spent = spend(&budget, "p", true).unwrap();
        assert_eq!(spent["status"]["disruptionsAllowed"], 0);
        assert!(spent["status"]["disruptedPods"]["p"].is_string());
        let refusal = spend(&spent, "q", true).unwrap_err();
        assert_eq!(refusal.code, 429);
        assert_eq!(
            refusal.message,
            "Cannot evict pod as it would violate the pod's disruption budget."
        );
    }
}
