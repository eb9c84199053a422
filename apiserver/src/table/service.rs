//! Services and what stands behind them.

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;

use super::read::{NONE, UNSET, at, first_three, int, joined, labels, list, or, text};
use super::{AGE, Column, NAME, Printer, age};

pub(super) static SERVICES: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Type"),
        Column::text("Cluster-IP"),
        Column::text("External-IP"),
        Column::text("Port(s)"),
        AGE,
        Column::wide("Selector"),
    ],
    row: service,
};

fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let cluster_ip = match list(object, "spec.clusterIPs").first() {
        Some(ip) => ip.as_str().unwrap_or_default(),
        None => text(object, "spec.clusterIP"),
    };
    let ports: Vec<String> = list(object, "spec.ports").iter().map(port).collect();
    vec![
        meta::name(object).into(),
        text(object, "spec.type").into(),
        or(cluster_ip, NONE).into(),
        external_ip(object).into(),
        joined(ports.iter().map(String::as_str), NONE).into(),
        age::of(object, now),
        labels(at(object, "spec.selector")).into(),
    ]
}

fn port(port: &Value) -> String {
    let (number, protocol) = (int(port, "port"), text(port, "protocol"));
    match int(port, "nodePort") {
        0 => format!("{number}/{protocol}"),
        node => format!("{number}:{node}/{protocol}"),
    }
}

fn external_ip(object: &Value) -> String {
    let given = list(object, "spec.externalIPs").iter().filter_map(Value::as_str);
    match text(object, "spec.type") {
        "ClusterIP" | "NodePort" => joined(given, NONE),
        "LoadBalancer" => {
            let ingress = list(object, "status.loadBalancer.ingress");
            let balanced = ingress
                .iter()
                .map(|ingress| or(text(ingress, "ip"), text(ingress, "hostname")));
            joined(balanced.filter(|address| !address.is_empty()).chain(given), "<pending>")
        }
        "ExternalName" => text(object, "spec.externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

pub(super) static ENDPOINTS: Printer = Printer {
    columns: &[NAME, Column::text("Endpoints"), AGE],
    row: |object, now| {
        vec![
            meta::name(object).into(),
            addresses(object).into(),
            age::of(object, now),
        ]
    },
};

fn addresses(object: &Value) -> String {
    let mut all = Vec::new();
    for subset in list(object, "subsets") {
        let ips = || list(subset, "addresses").iter().map(|address| text(address, "ip"));
        if list(subset, "ports").is_empty() {
            all.extend(ips().map(str::to_owned));
        }
        for port in list(subset, "ports") {
            all.extend(ips().map(|ip| host_port(ip, int(port, "port"))));
        }
    }
    if list(object, "subsets").is_empty() {
        NONE.to_owned()
    } else {
        first_three(&all)
    }
}

fn host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

pub(super) static SLICES: Printer = Printer {
    columns: &[
        NAME,
        Column::text("AddressType"),
        Column::text("Ports"),
        Column::text("Endpoints"),
        AGE,
    ],
    row: slice,
};

fn slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = list(object, "ports")
        .iter()
        .map(|port| {
            at(port, "port")
                .as_i64()
                .map_or_else(|| "*".to_owned(), |number| number.to_string())
        })
        .collect();
    let endpoints: Vec<String> = list(object, "endpoints")
        .iter()
        .flat_map(|endpoint| list(endpoint, "addresses"))
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect();
    let shown = |all: &[String]| {
        if all.is_empty() {
            UNSET.to_owned()
        } else {
            first_three(all)
        }
    };
    vec![
        meta::name(object).into(),
        text(object, "addressType").into(),
        shown(&ports).into(),
        shown(&endpoints).into(),
        age::of(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::check;

    const HEADINGS: &str = "NAME | TYPE | CLUSTER-IP | EXTERNAL-IP | PORT(S) | AGE | SELECTOR";

    #[test]
    fn services() {
        for (spec, status, cells) in [
            (
                json!({"type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 443, "protocol": "TCP"}]}),
                json!({}),
                "s | ClusterIP | 10.96.0.1 | <none> | 443/TCP | <unknown> | <none>",
            ),
            (
                json!({"type": "NodePort", "clusterIPs": ["10.96.0.2"], "selector": {"app": "web"},
                    "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 53, "protocol": "UDP", "nodePort": 30053}]}),
                json!({}),
                "s | NodePort | 10.96.0.2 | <none> | 80:30080/TCP,53:30053/UDP | <unknown> | app=web",
            ),
            (
                json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.3"]}),
                json!({}),
                "s | LoadBalancer | 10.96.0.3 | <pending> | <none> | <unknown> | <none>",
            ),
            (
                json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.3"]}),
                json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"hostname": "lb.example"}]}}),
                "s | LoadBalancer | 10.96.0.3 | 1.2.3.4,lb.example | <none> | <unknown> | <none>",
            ),
            (
                json!({"type": "ExternalName", "externalName": "a.b"}),
                json!({}),
                "s | ExternalName | <none> | a.b | <none> | <unknown> | <none>",
            ),
            (
                json!({"type": "ClusterIP", "clusterIPs": ["None"]}),
                json!({}),
                "s | ClusterIP | None | <none> | <none> | <unknown> | <none>",
            ),
        ] {
            check(
                "",
                "services",
                &json!({"metadata": {"name": "s"}, "spec": spec, "status": status}),
                HEADINGS,
                cells,
            );
        }
    }

    #[test]
    fn endpoints() {
        let endpoints = json!({"metadata": {"name": "e"}, "subsets": [{"addresses": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}],
            "ports": [{"port": 80}, {"port": 443}]}]});
        check(
            "",
            "endpoints",
            &endpoints,
            "NAME | ENDPOINTS | AGE",
            "e | 10.0.0.1:80,10.0.0.2:80,10.0.0.1:443 + 1 more... | <unknown>",
        );
        check(
            "",
            "endpoints",
            &json!({"metadata": {"name": "e"}}),
            "NAME | ENDPOINTS | AGE",
            "e | <none> | <unknown>",
        );
    }

    #[test]
    fn slices() {
        let slice = json!({"metadata": {"name": "e"}, "addressType": "IPv4", "ports": [{"port": 80}, {}],
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}]});
        let headings = "NAME | ADDRESSTYPE | PORTS | ENDPOINTS | AGE";
        check(
            "discovery.k8s.io",
            "endpointslices",
            &slice,
            headings,
            "e | IPv4 | 80,* | 10.0.0.1,10.0.0.2 | <unknown>",
        );
        let empty = json!({"metadata": {"name": "e"}, "addressType": "IPv4"});
        check(
            "discovery.k8s.io",
            "endpointslices",
            &empty,
            headings,
            "e | IPv4 | <unset> | <unset> | <unknown>",
        );
    }
}
