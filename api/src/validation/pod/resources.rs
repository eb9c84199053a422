//! Requests and limits.

use serde_json::Value;

use super::super::Errors;
use super::super::core::quantity;
use super::super::read::{NON_NEGATIVE, complain, entries, get};
use crate::field::{Error, Path};
use crate::names;
use crate::quantity::Quantity;

const FORMAT: &str = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

pub(super) fn requirements(path: &Path<'_>, resources: &Value, errors: &mut Errors) {
    list(&path.child("limits"), get(resources, "limits"), errors);
    let requests = path.child("requests");
    list(&requests, get(resources, "requests"), errors);
    for (name, value) in entries(resources, "requests") {
        let limit = quantity(get(get(resources, "limits"), name));
        let Some(request) = quantity(value) else { continue };
        match limit {
            Some(limit) if !overcommits(name) && request != limit => {
                let detail = format!("must be equal to {name} limit of {limit}");
                errors.push(Error::invalid(&requests, request.to_string(), detail));
            }
            Some(limit) if request > limit => {
                let detail = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(Error::invalid(&requests, request.to_string(), detail));
            }
            None if !overcommits(name) => {
                errors.push(Error::required(
                    &path.child("limits"),
                    "Limit must be set for non overcommitable resources",
                ));
            }
            _ => {}
        }
    }
}

/// One resource list.
pub(super) fn list(path: &Path<'_>, list: &Value, errors: &mut Errors) {
    for (name, value) in list.as_object().into_iter().flatten() {
        let path = path.key(name);
        resource_name(&path, name, errors);
        match quantity(value) {
            None => errors.push(Error::invalid(&path, value.clone(), FORMAT)),
            Some(amount) if amount.as_milli() < 0 => {
                errors.push(Error::invalid(&path, amount.to_string(), NON_NEGATIVE));
            }
            Some(amount) if whole_only(name) && fractional(&amount) => {
                errors.push(Error::invalid(&path, amount.to_string(), "must be an integer"));
            }
            Some(_) => {}
        }
    }
}

fn resource_name(path: &Path<'_>, name: &str, errors: &mut Errors) {
    let complaints = names::qualified_name(name);
    let qualified = complaints.is_empty();
    complain(path, name, complaints, errors);
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if qualified && !name.contains('/') && !standard {
        for detail in [
            "must be a standard resource type or fully qualified",
            "must be a standard resource for containers",
        ] {
            errors.push(Error::invalid(path, name, detail));
        }
    }
}

/// Extended resources and huge pages cannot be promised twice.
fn overcommits(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    native && !name.starts_with("hugepages-")
}

fn whole_only(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/")
}

fn fractional(amount: &Quantity) -> bool {
    amount.as_milli() % 1000 != 0
}
