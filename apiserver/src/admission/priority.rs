//! A pod's priority is the number that its class stands for; users do not choose numbers.

use std::sync::Arc;

use serde_json::Value;
use skiff_api::meta;
use skiff_api::status::{Qualified, Status};

use super::{Operation, Plugin, Review};
use crate::cache::Cache;
use crate::errors::Result;

const PREEMPT: &str = "PreemptLowerPriority";

/// See the module.
#[derive(Debug)]
pub(super) struct Priority {
    pub(super) classes: Arc<Cache>,
}

impl Priority {
    /// The class that pods without one get, if there is one.
    fn default_class(&self) -> Option<Value> {
        self.classes
            .all("")
            .into_iter()
            .map(|class| class.value())
            .filter(|class| class["globalDefault"] == true)
            .min_by_key(|class| class["value"].as_i64())
    }
}

impl Plugin for Priority {
    fn mutate(&self, review: &Review<'_>, pod: &mut Value) -> Result<()> {
        if review.operation != Operation::Create || !review.is_about("", "pods") || !pod["spec"].is_object() {
            return Ok(());
        }
        let refuse =
            |pod: &Value, why: String| Err(Status::forbidden(Qualified::new("", "pods"), meta::name(pod), &why));
        let name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
        let class = if name.is_empty() {
            self.default_class()
        } else {
            match self.classes.get("", &name) {
                Some(class) => Some(class.value()),
                None => return refuse(pod, format!("no PriorityClass with name {name} was found")),
            }
        };
        let (value, policy) = match &class {
            Some(class) => {
                pod["spec"]["priorityClassName"] = meta::name(class).into();
                (
                    class["value"].as_i64().unwrap_or(0),
                    class["preemptionPolicy"].as_str().unwrap_or(PREEMPT),
                )
            }
            None => (0, PREEMPT),
        };
        match pod["spec"]["priority"].as_i64() {
            Some(own) if own != value => {
                return refuse(
                    pod,
                    format!(
                        "the integer value of priority ({own}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
                    ),
                );
            }
            _ => pod["spec"]["priority"] = value.into(),
        }
        match pod["spec"]["preemptionPolicy"].as_str() {
            Some(own) if own != policy => refuse(
                pod,
                format!(
                    "the string value of PreemptionPolicy ({own}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
                ),
            ),
            _ => {
                pod["spec"]["preemptionPolicy"] = policy.into();
                Ok(())
            }
        }
    }
}
