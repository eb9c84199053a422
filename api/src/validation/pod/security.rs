//! Security contexts of pods and containers.

use serde_json::Value;

use super::super::Errors;
use super::super::read::{flag, get, has, list, one_of, text};
use super::container::id;
use crate::field::{Error, Path};

pub(super) fn pod(path: &Path<'_>, spec: &Value, errors: &mut Errors) {
    if flag(spec, "shareProcessNamespace") && flag(spec, "hostPID") {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(Error::invalid(&path.child("shareProcessNamespace"), true, detail));
    }
    let context = get(spec, "securityContext");
    let path = path.child("securityContext");
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(&path, key, context, errors);
    }
    let groups = path.child("supplementalGroups");
    let max = i64::from(i32::MAX);
    for (i, group) in list(context, "supplementalGroups").iter().enumerate() {
        if let Some(group) = group.as_i64().filter(|group| !(0..=max).contains(group)) {
            errors.push(Error::invalid(
                &groups.index(i),
                group,
                super::super::read::between(0, max),
            ));
        }
    }
    one_of(
        &path,
        "fsGroupChangePolicy",
        context,
        &["Always", "OnRootMismatch"],
        false,
        errors,
    );
    sysctls(&path.child("sysctls"), list(context, "sysctls"), errors);
    seccomp(&path.child("seccompProfile"), get(context, "seccompProfile"), errors);
}

fn sysctls(path: &Path<'_>, sysctls: &[Value], errors: &mut Errors) {
    for (i, sysctl) in sysctls.iter().enumerate() {
        let (path, name) = (path.index(i), text(sysctl, "name"));
        if name.is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        } else if sysctls[..i].iter().any(|other| text(other, "name") == name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
    }
}

pub(super) fn container(path: &Path<'_>, context: &Value, errors: &mut Errors) {
    if context.is_null() {
        return;
    }
    for key in ["runAsUser", "runAsGroup"] {
        id(path, key, context, errors);
    }
    one_of(path, "procMount", context, &["Default", "Unmasked"], false, errors);
    if get(context, "allowPrivilegeEscalation") == &Value::Bool(false) {
        let refuse = |what: &str| {
            let detail = format!("cannot set `allowPrivilegeEscalation` to false and {what}");
            Error::invalid(path, context.clone(), detail)
        };
        if flag(context, "privileged") {
            errors.push(refuse("`privileged` to true"));
        }
        if list(get(context, "capabilities"), "add")
            .iter()
            .any(|capability| capability == "CAP_SYS_ADMIN")
        {
            errors.push(refuse("`capabilities.Add` CAP_SYS_ADMIN"));
        }
    }
    seccomp(&path.child("seccompProfile"), get(context, "seccompProfile"), errors);
}

fn seccomp(path: &Path<'_>, profile: &Value, errors: &mut Errors) {
    if profile.is_null() {
        return;
    }
    let kinds = ["Localhost", "RuntimeDefault", "Unconfined"];
    match text(profile, "type") {
        "" => errors.push(Error::required(
            &path.child("type"),
            "type is required when seccompProfile is set",
        )),
        _ => one_of(path, "type", profile, &kinds, true, errors),
    }
    let file = path.child("localhostProfile");
    match text(profile, "type") {
        "Localhost" if !has(profile, "localhostProfile") => {
            errors.push(Error::required(&file, "must be set when seccomp type is Localhost"));
        }
        "Localhost" => {
            super::super::read::local_path(&file, text(profile, "localhostProfile"), errors);
        }
        _ if has(profile, "localhostProfile") => {
            let detail = "can only be set when seccomp type is Localhost";
            errors.push(Error::invalid(&file, get(profile, "localhostProfile").clone(), detail));
        }
        _ => {}
    }
}
