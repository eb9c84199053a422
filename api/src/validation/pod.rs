//! Pods and pod templates. A pod's parts have a file each.

mod affinity;
mod container;
mod env;
mod probe;
mod resources;
mod security;
mod spec;
mod update;
mod volume;

use serde_json::Value;

use super::read::{at, get, list, text};
use super::{Errors, metadata};
use crate::field::{Error, Path};
use crate::pods::MIRROR;

pub(super) use update::{subresource, update};

const ANNOTATIONS: Path<'static> = Path::root("metadata.annotations");

fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    get(at(object, "metadata.annotations"), key).as_str()
}

/// A pod itself.
pub(super) fn create(object: &Value, errors: &mut Errors) {
    let path = Path::root("spec");
    let spec = get(object, "spec");
    spec::spec(&path, spec, errors);
    if let Some(shown) = annotation(object, MIRROR)
        && text(spec, "nodeName").is_empty()
    {
        let detail = "must set spec.nodeName if mirror pod annotation is set";
        errors.push(Error::invalid(&ANNOTATIONS.key(MIRROR), shown, detail));
    }
    for key in ["containers", "initContainers"] {
        let path = path.child(key);
        for (i, container) in list(spec, key).iter().enumerate() {
            let image = text(container, "image");
            if image != image.trim() {
                let detail = "must not have leading or trailing whitespace";
                errors.push(Error::invalid(&path.index(i).child("image"), image, detail));
            }
        }
    }
}

/// A template at `path`.
pub(super) fn template(path: &Path<'_>, template: &Value, errors: &mut Errors) {
    metadata::template(path, template, errors);
    let spec = get(template, "spec");
    spec::spec(&path.child("spec"), spec, errors);
    if !list(spec, "ephemeralContainers").is_empty() {
        let detail = "ephemeral containers not allowed in pod template";
        errors.push(Error::forbidden(&path.child("spec.ephemeralContainers"), detail));
    }
}

/// The kind `PodTemplate`.
pub(super) fn template_object(object: &Value, errors: &mut Errors) {
    template(&Path::root("template"), at(object, "template"), errors);
}

#[cfg(test)]
mod tests;
