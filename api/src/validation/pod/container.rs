//! Containers of all three kinds.

use serde_json::Value;

use super::super::Errors;
use super::super::read::{
    between, complain, get, has, int, list, local_path, one_of, port_name, port_number, required, required_name, text,
};
use super::spec::on_host_network;
use super::{env, probe, resources, security};
use crate::field::{Error, Path};
use crate::names;

/// Names of the pod's volumes.
pub(super) type Volumes<'a> = Vec<&'a str>;

pub(super) fn containers<'a>(path: &Path<'_>, spec: &'a Value, volumes: &Volumes<'a>, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    let root = path.child("containers");
    let list = list(spec, "containers");
    if list.is_empty() {
        errors.push(Error::required(&root, ""));
    }
    for (i, container) in list.iter().enumerate() {
        let path = root.index(i);
        common(&path, container, spec, volumes, errors);
        unique(&path, container, &mut seen, errors);
        probe::lifecycle(&path.child("lifecycle"), get(container, "lifecycle"), errors);
        probe::probes(&path, container, errors);
        one_of(
            &path,
            "restartPolicy",
            container,
            &["Always", "Never", "OnFailure"],
            false,
            errors,
        );
        restart_rules(&path, container, errors);
    }
    host_ports(&root, list, errors);
    init_containers(path, spec, volumes, &mut seen, errors);
    ephemeral_containers(path, spec, volumes, &mut seen, errors);
}

fn init_containers<'a>(
    path: &Path<'_>,
    spec: &'a Value,
    volumes: &Volumes<'a>,
    seen: &mut Vec<&'a str>,
    errors: &mut Errors,
) {
    let root = path.child("initContainers");
    for (i, container) in list(spec, "initContainers").iter().enumerate() {
        let path = root.index(i);
        common(&path, container, spec, volumes, errors);
        unique(&path, container, seen, errors);
        restart_rules(&path, container, errors);
        if text(container, "restartPolicy") == "Always" {
            probe::lifecycle(&path.child("lifecycle"), get(container, "lifecycle"), errors);
            probe::probes(&path, container, errors);
            continue;
        }
        one_of(
            &path,
            "restartPolicy",
            container,
            &["Always", "Never", "OnFailure"],
            false,
            errors,
        );
        for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if has(container, key) {
                let detail = "may not be set for init containers without restartPolicy=Always";
                errors.push(Error::forbidden(&path.child(key), detail));
            }
        }
    }
}

fn ephemeral_containers<'a>(
    path: &Path<'_>,
    spec: &'a Value,
    volumes: &Volumes<'a>,
    seen: &mut Vec<&'a str>,
    errors: &mut Errors,
) {
    const FORBIDDEN: [&str; 8] = [
        "ports",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
        "resizePolicy",
        "restartPolicy",
        "restartPolicyRules",
    ];
    let root = path.child("ephemeralContainers");
    let regular: Vec<&str> = list(spec, "containers")
        .iter()
        .map(|container| text(container, "name"))
        .collect();
    for (i, container) in list(spec, "ephemeralContainers").iter().enumerate() {
        let path = root.index(i);
        common(&path, container, spec, volumes, errors);
        unique(&path, container, seen, errors);
        let target = text(container, "targetContainerName");
        if !target.is_empty() && !regular.contains(&target) {
            errors.push(Error::not_found(&path.child("targetContainerName"), target));
        }
        for key in FORBIDDEN.iter().filter(|key| has(container, key)) {
            errors.push(Error::forbidden(
                &path.child(key),
                "cannot be set for an Ephemeral Container",
            ));
        }
        if get(container, "resources")
            .as_object()
            .is_some_and(|resources| !resources.is_empty())
        {
            errors.push(Error::forbidden(
                &path.child("resources"),
                "cannot be set for an Ephemeral Container",
            ));
        }
    }
}

/// What a container does about its exit codes, whatever its policy says.
fn restart_rules(path: &Path<'_>, container: &Value, errors: &mut Errors) {
    const RULES: usize = 20;
    const CODES: usize = 255;
    let rules = list(container, "restartPolicyRules");
    let root = path.child("restartPolicyRules");
    if !rules.is_empty() && text(container, "restartPolicy").is_empty() {
        let detail = "must specify restartPolicy when restart rules are used";
        errors.push(Error::required(&path.child("restartPolicy"), detail));
    }
    if rules.len() > RULES {
        errors.push(Error::too_many(&root, rules.len(), RULES));
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = root.index(i);
        one_of(&path, "action", rule, &["Restart"], true, errors);
        let codes = get(rule, "exitCodes");
        let path = path.child("exitCodes");
        if codes.is_null() {
            errors.push(Error::required(&path, "must be specified"));
            continue;
        }
        one_of(&path, "operator", codes, &["In", "NotIn"], true, errors);
        let values = list(codes, "values").len();
        if values > CODES {
            errors.push(Error::too_many(&path.child("values"), values, CODES));
        }
    }
}

/// Whether a main container that ended with `code` may run again, by its rules, its own policy or the pod's.
pub(super) fn restarts(spec: &Value, name: &str, code: i64) -> bool {
    let mut containers = list(spec, "containers").iter();
    let container = containers.find(|container| text(container, "name") == name);
    let container = container.unwrap_or(&Value::Null);
    let ruled = list(container, "restartPolicyRules").iter().any(|rule| {
        let codes = get(rule, "exitCodes");
        let among = list(codes, "values").iter().any(|value| value.as_i64() == Some(code));
        match text(codes, "operator") {
            "In" => among,
            "NotIn" => !among,
            _ => false,
        }
    });
    let own = text(container, "restartPolicy");
    let policy = if own.is_empty() {
        text(spec, "restartPolicy")
    } else {
        own
    };
    ruled || policy == "Always" || (policy == "OnFailure" && code != 0)
}

fn unique<'a>(path: &Path<'_>, container: &'a Value, seen: &mut Vec<&'a str>, errors: &mut Errors) {
    let name = text(container, "name");
    if name.is_empty() {
        return;
    }
    if seen.contains(&name) {
        errors.push(Error::duplicate(&path.child("name"), name));
    }
    seen.push(name);
}

fn common(path: &Path<'_>, container: &Value, spec: &Value, volumes: &Volumes<'_>, errors: &mut Errors) {
    required_name(path, "name", container, names::dns1123_label, errors);
    required(path, "image", container, errors);
    let policies = ["FallbackToLogsOnError", "File"];
    one_of(path, "terminationMessagePolicy", container, &policies, true, errors);
    ports(
        &path.child("ports"),
        list(container, "ports"),
        on_host_network(spec),
        errors,
    );
    env::env(&path.child("env"), list(container, "env"), errors);
    env::from(&path.child("envFrom"), list(container, "envFrom"), errors);
    mounts(path, container, volumes, errors);
    one_of(
        path,
        "imagePullPolicy",
        container,
        &["Always", "IfNotPresent", "Never"],
        true,
        errors,
    );
    resources::requirements(&path.child("resources"), get(container, "resources"), errors);
    security::container(
        &path.child("securityContext"),
        get(container, "securityContext"),
        errors,
    );
}

fn ports(path: &Path<'_>, ports: &[Value], host_network: bool, errors: &mut Errors) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            let complaints = port_name(name);
            if complaints.is_empty() && seen.contains(&name) {
                errors.push(Error::duplicate(&path.child("name"), name));
            }
            complain(&path.child("name"), name, complaints, errors);
            seen.push(name);
        }
        match int(port, "containerPort").unwrap_or(0) {
            0 => errors.push(Error::required(&path.child("containerPort"), "")),
            number => port_number(&path.child("containerPort"), number, errors),
        }
        if let Some(host) = int(port, "hostPort").filter(|number| *number != 0) {
            port_number(&path.child("hostPort"), host, errors);
            if host_network && int(port, "containerPort") != Some(host) {
                let detail = "must match `hostPort` when `hostNetwork` is true";
                let number = int(port, "containerPort").unwrap_or(0);
                errors.push(Error::invalid(&path.child("containerPort"), number, detail));
            }
        }
        one_of(&path, "protocol", port, &["SCTP", "TCP", "UDP"], true, errors);
    }
}

/// Two containers of a pod cannot have the same port of the host.
fn host_ports(path: &Path<'_>, containers: &[Value], errors: &mut Errors) {
    let mut seen: Vec<String> = Vec::new();
    for (c, container) in containers.iter().enumerate() {
        let path = path.index(c);
        let path = path.child("ports");
        for (p, port) in list(container, "ports").iter().enumerate() {
            let Some(number) = int(port, "hostPort").filter(|number| *number != 0) else {
                continue;
            };
            let key = format!("{}/{}/{number}", text(port, "protocol"), text(port, "hostIP"));
            if seen.contains(&key) {
                errors.push(Error::duplicate(&path.index(p).child("hostPort"), key));
            } else {
                seen.push(key);
            }
        }
    }
}

fn mounts(path: &Path<'_>, container: &Value, volumes: &Volumes<'_>, errors: &mut Errors) {
    let root = path.child("volumeMounts");
    let mut seen: Vec<&str> = Vec::new();
    for (i, mount) in list(container, "volumeMounts").iter().enumerate() {
        let path = root.index(i);
        let name = text(mount, "name");
        if name.is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        } else if !volumes.contains(&name) {
            errors.push(Error::not_found(&path.child("name"), name));
        }
        let target = text(mount, "mountPath");
        if target.is_empty() {
            errors.push(Error::required(&path.child("mountPath"), ""));
        } else if seen.contains(&target) {
            errors.push(Error::invalid(&path.child("mountPath"), target, "must be unique"));
        }
        seen.push(target);
        sub_paths(&path, mount, errors);
        propagation(&path, mount, container, errors);
    }
    devices(path, container, volumes, &seen, errors);
}

fn sub_paths(path: &Path<'_>, mount: &Value, errors: &mut Errors) {
    let (plain, expression) = (text(mount, "subPath"), text(mount, "subPathExpr"));
    if !plain.is_empty() {
        local_path(&path.child("subPath"), plain, errors);
    }
    if !expression.is_empty() {
        if !plain.is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(Error::invalid(&path.child("subPathExpr"), expression, detail));
        }
        local_path(&path.child("subPathExpr"), expression, errors);
    }
}

fn propagation(path: &Path<'_>, mount: &Value, container: &Value, errors: &mut Errors) {
    one_of(
        path,
        "mountPropagation",
        mount,
        &["Bidirectional", "HostToContainer", "None"],
        false,
        errors,
    );
    let privileged = get(get(container, "securityContext"), "privileged") == &Value::Bool(true);
    if text(mount, "mountPropagation") == "Bidirectional" && !privileged {
        let detail = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(Error::forbidden(&path.child("mountPropagation"), detail));
    }
    one_of(
        path,
        "recursiveReadOnly",
        mount,
        &["Disabled", "Enabled", "IfPossible"],
        false,
        errors,
    );
}

fn devices(path: &Path<'_>, container: &Value, volumes: &Volumes<'_>, mounted: &[&str], errors: &mut Errors) {
    let root = path.child("volumeDevices");
    for (i, device) in list(container, "volumeDevices").iter().enumerate() {
        let path = root.index(i);
        let (name, target) = (text(device, "name"), text(device, "devicePath"));
        if name.is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        } else if !volumes.contains(&name) {
            errors.push(Error::not_found(&path.child("name"), name));
        }
        if target.is_empty() {
            errors.push(Error::required(&path.child("devicePath"), ""));
        } else if mounted.contains(&target) {
            errors.push(Error::invalid(
                &path.child("devicePath"),
                target,
                "must not already exist in volumeMounts",
            ));
        }
    }
}

/// A file mode; the range is upstream's, its text too.
pub(super) fn file_mode(parent: &Path<'_>, key: &str, value: &Value, errors: &mut Errors) {
    if let Some(mode) = int(value, key).filter(|mode| !(0..=0o777).contains(mode)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(Error::invalid(&parent.child(key), mode, detail));
    }
}

/// A user or group id.
pub(super) fn id(parent: &Path<'_>, key: &str, value: &Value, errors: &mut Errors) {
    let max = i64::from(i32::MAX);
    if let Some(id) = int(value, key).filter(|id| !(0..=max).contains(id)) {
        errors.push(Error::invalid(&parent.child(key), id, between(0, max)));
    }
}
