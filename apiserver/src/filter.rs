//! Which objects a list, a watch or a deletecollection is about: namespace, label selector, field selector.

use skiff_api::selector::{FieldSelector, LabelSelector};
use skiff_api::status::Status;

use crate::cache::Object;
use crate::errors::Result;
use crate::query::Query;
use crate::strategy::Strategy;

/// Which objects a request is about.
#[derive(Debug)]
pub struct Filter {
    namespace: String,
    /// The one object that the path names.
    name: Option<String>,
    labels: Option<LabelSelector>,
    fields: Option<FieldSelector>,
    strategy: &'static dyn Strategy,
}

impl Filter {
    /// Reads the selectors of a query.
    pub fn parse(query: &Query, namespace: &str, strategy: &'static dyn Strategy) -> Result<Self> {
        let labels = query
            .non_empty("labelSelector")
            .map(LabelSelector::parse)
            .transpose()
            .map_err(|error| Status::bad_request(error.to_string()))?
            .filter(|selector| !selector.is_everything());
        let fields = query
            .non_empty("fieldSelector")
            .map(FieldSelector::parse)
            .transpose()
            .map_err(|error| Status::bad_request(error.to_string()))?
            .filter(|selector| !selector.is_everything());
        for requirement in fields.iter().flat_map(FieldSelector::requirements) {
            let field = requirement.field.as_str();
            if !matches!(field, "metadata.name" | "metadata.namespace") && !strategy.fields().contains(&field) {
                return Err(Status::bad_request(format!("field label not supported: {field}")));
            }
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            name: None,
            labels,
            fields,
            strategy,
        })
    }

    /// A filter for one object.
    pub fn one(namespace: &str, name: &str, strategy: &'static dyn Strategy) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: Some(name.to_owned()),
            labels: None,
            fields: None,
            strategy,
        }
    }

    /// The namespace; empty for all.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Whether selectors hide some objects of the namespace.
    pub fn selects(&self) -> bool {
        self.name.is_some() || self.labels.is_some() || self.fields.is_some()
    }

    /// Whether the selectors let an object of the namespace through.
    pub fn selected(&self, object: &Object) -> bool {
        self.name.as_deref().is_none_or(|name| name == object.name())
            && self
                .labels
                .as_ref()
                .is_none_or(|selector| selector.matches_with(|key| object.label(key)))
            && self.fields.as_ref().is_none_or(|selector| {
                selector.requirements().iter().all(|requirement| {
                    let value = object.field(self.strategy, &requirement.field).unwrap_or_default();
                    (value == requirement.value.as_str()) == requirement.equal
                })
            })
    }

    /// Whether an object of any namespace is let through.
    pub fn sees(&self, object: &Object) -> bool {
        (self.namespace.is_empty() || self.namespace == object.namespace()) && self.selected(object)
    }
}
