//! A pod's host name and its `/etc/hosts`.

use std::fmt::Write as _;

use skiff_api::k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// The limit of a DNS label, to which a host name without its domain is cut.
const MAX_NAME: usize = 63;
/// The kernel's limit for a host name.
const MAX_FULL_NAME: usize = 64;

/// The host name that the pod's processes see; an error where it is more than the kernel takes.
pub(crate) fn hostname(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    let (name, domain) = names(pod, cluster_domain);
    if domain.is_empty() || pod::spec(pod).set_hostname_as_fqdn != Some(true) {
        return Ok(name);
    }
    let full = format!("{name}.{domain}");
    if full.len() > MAX_FULL_NAME {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long ({MAX_FULL_NAME} characters is \
             the max, {} characters requested)",
            full.len()
        ));
    }
    Ok(full)
}

/// The pod's name for itself, which may have dots as a pod's name may, and its domain when it has a subdomain.
fn names(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = pod::spec(pod);
    if let Some(name) = spec.hostname_override.as_deref().filter(|name| !name.is_empty()) {
        return (name.to_owned(), String::new());
    }
    let mut name = spec
        .hostname
        .clone()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| pod::name(pod).to_owned());
    name.truncate(MAX_NAME);
    let name = name.trim_end_matches(['-', '.']).to_owned();
    let subdomain = spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty());
    let domain = subdomain.map(|subdomain| format!("{subdomain}.{}.svc.{cluster_domain}", pod::namespace(pod)));
    (name, domain.unwrap_or_default())
}

/// The text of the pod's `/etc/hosts`; with the node's network it begins with the node's own.
pub(crate) fn file(pod: &Pod, ips: &[String], cluster_domain: &str, node_hosts: Option<&str>) -> String {
    let mut text = String::new();
    if let Some(hosts) = node_hosts {
        text.push_str("# Kubernetes-managed hosts file (host network).\n");
        text.push_str(hosts);
    } else {
        text.push_str(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        let (name, domain) = names(pod, cluster_domain);
        for ip in ips {
            if domain.is_empty() {
                writeln!(text, "{ip}\t{name}").ok();
            } else {
                writeln!(text, "{ip}\t{name}.{domain}\t{name}").ok();
            }
        }
    }
    let aliases = pod::spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            writeln!(text, "{}\t{names}", alias.ip).ok();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn host_names() {
        let full = "h.s.ns.svc.cluster.local";
        let subdomain = json!({"hostname": "h", "subdomain": "s"});
        let cases = [
            (json!({}), "p", "p"),
            (json!({"hostname": "h"}), "h", "h"),
            (json!({"hostname": "h", "setHostnameAsFQDN": true}), "h", "h"),
            (subdomain.clone(), "h", "h.s.ns.svc.cluster.local\th"),
            (
                with(&subdomain, "setHostnameAsFQDN", true.into()),
                full,
                "h.s.ns.svc.cluster.local\th",
            ),
            (with(&subdomain, "hostnameOverride", "a.b".into()), "a.b", "a.b"),
        ];
        for (spec, name, line) in cases {
            let pod = pod(&spec);
            assert_eq!(hostname(&pod, "cluster.local").as_deref(), Ok(name), "{spec}");
            let text = file(&pod, &["10.0.0.1".into()], "cluster.local", None);
            assert!(text.ends_with(&format!("\n10.0.0.1\t{line}\n")), "{spec}: {text}");
        }
    }

    fn with(spec: &Value, key: &str, value: Value) -> Value {
        let mut spec = spec.clone();
        spec[key] = value;
        spec
    }

    /// A pod's name may have dots, and all of it is the host's name.
    #[test]
    fn names_with_dots() {
        for (subdomain, line) in [("", "web.v1"), ("s", "web.v1.s.ns.svc.cluster.local\tweb.v1")] {
            let mut pod = pod(&json!({"subdomain": subdomain}));
            pod.metadata.name = Some("web.v1".into());
            assert_eq!(hostname(&pod, "cluster.local").as_deref(), Ok("web.v1"));
            let text = file(&pod, &["10.0.0.1".into()], "cluster.local", None);
            assert!(text.ends_with(&format!("\n10.0.0.1\t{line}\n")), "{text}");
        }
    }

    #[test]
    fn a_full_name_that_the_kernel_does_not_take_is_refused() {
        let named = |length: usize| {
            let spec = json!({"hostname": "h".repeat(length), "subdomain": "s", "setHostnameAsFQDN": true});
            hostname(&pod(&spec), "cluster.local")
        };
        // The rest has 23 characters.
        assert_eq!(named(41).map(|name| name.len()), Ok(64));
        let full = format!("{}.s.ns.svc.cluster.local", "h".repeat(42));
        let text = format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long (64 characters is the max, 65 \
             characters requested)"
        );
        assert_eq!(named(42), Err(text));
    }

    #[test]
    fn hosts_files() {
        let p = pod(&json!({"subdomain": "s", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let text = file(&p, &["10.0.0.1".into()], "cluster.local", None);
        assert!(text.contains("10.0.0.1\tp.s.ns.svc.cluster.local\tp\n"), "{text}");
        assert!(
            text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"),
            "{text}"
        );
        let header = "# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n";
        let host = file(&pod(&json!({"hostNetwork": true})), &[], "x", Some("127.0.0.1 me\n"));
        assert_eq!(host, header);
        let mut p = p;
        p.spec.as_mut().unwrap().host_network = Some(true);
        let host = file(&p, &["10.0.0.1".into()], "x", Some("127.0.0.1 me\n"));
        assert_eq!(
            host,
            format!("{header}\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n")
        );
    }
}
