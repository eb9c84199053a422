//! Plans as tables: objects in, routes and problems out.

use super::*;
use crate::model::{Endpoint, Options, Path, Rule, ServicePort};
use skiff_pki::{CertificateAuthority, Request};

fn backend(name: &str) -> Backend {
    Backend::Service {
        name: name.to_owned(),
        port: PortRef::Number(80),
    }
}

fn rule(host: &str, paths: &[(&str, &str)]) -> Rule {
    let path = |(path, service): &(&str, &str)| Path {
        path: (*path).to_owned(),
        exact: false,
        backend: backend(service),
    };
    Rule {
        host: host.to_owned(),
        paths: paths.iter().map(path).collect(),
    }
}

fn ingress(created: i64, rules: Vec<Rule>) -> Ingress {
    Ingress {
        created,
        class: Some("skiff".to_owned()),
        rules,
        ..Ingress::default()
    }
}

fn tls(hosts: &[&str], secret: &str) -> Tls {
    Tls {
        hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
        secret: Some(secret.to_owned()),
    }
}

fn secret(name: &str) -> Secret {
    let authority = CertificateAuthority::generate("test").unwrap();
    let identity = authority.issue(&Request::server(name, &[name], &[])).unwrap();
    Secret::new(identity.certificate_pem().into(), identity.key_pem().into())
}

/// A world with our class and the Services `a` and `b` of one endpoint each.
fn objects(ingresses: Vec<(&str, Ingress)>) -> Objects {
    let mut objects = Objects::default();
    let class = Class {
        ours: true,
        ..Class::default()
    };
    objects.classes.insert(Key::new("", "skiff"), class);
    for (index, name) in ["a", "b"].into_iter().enumerate() {
        let port = ServicePort {
            number: 80,
            ..ServicePort::default()
        };
        let service = Service {
            external: false,
            ports: vec![port],
        };
        objects.services.insert(Key::new("n", name), service);
        let ip = [10, 0, 0, u8::try_from(index).unwrap() + 1].into();
        let slice = Slice {
            service: name.to_owned(),
            ports: vec![(String::new(), 8080)],
            endpoints: vec![Endpoint { ip, ready: true }],
        };
        objects.slices.insert(Key::new("n", format!("{name}-1")), slice);
    }
    for (name, ingress) in ingresses {
        objects.ingresses.insert(Key::new("n", name), ingress);
    }
    objects
}

fn service_of(plan: &Plan, host: &str, path: &str) -> Option<String> {
    plan.table
        .route(host, path)
        .map(|target| target.upstream.service.clone())
}

fn problems(plan: &Plan) -> Vec<(&str, &str)> {
    plan.problems
        .iter()
        .map(|problem| (problem.ingress.name.as_str(), problem.reason))
        .collect()
}

#[test]
fn whose_an_ingress_is() {
    let class = |ours, default| Class {
        ours,
        default,
        ..Class::default()
    };
    let text = |text: Option<&str>| text.map(str::to_owned);
    for (spec, annotation, default, wanted) in [
        (Some("skiff"), None, false, true),
        (Some("mine"), None, false, true),
        (Some("other"), None, true, false),
        (Some("absent"), None, true, false),
        (None, Some("skiff"), false, true),
        (None, Some("mine"), false, true),
        (None, Some("other"), true, false),
        (None, Some("nginx"), true, false),
        (None, None, true, true),
        (None, None, false, false),
        (Some("other"), Some("skiff"), true, false),
    ] {
        let classes = BTreeMap::from([
            (Key::new("", "mine"), class(true, default)),
            (Key::new("", "other"), class(false, true)),
            (Key::new("", "skiff"), class(true, false)),
        ]);
        let ingress = Ingress {
            class: text(spec),
            legacy_class: text(annotation),
            ..Ingress::default()
        };
        assert_eq!(
            is_ours(&ingress, &classes, "skiff"),
            wanted,
            "{spec:?} {annotation:?} {default}"
        );
    }
    // The old annotation names a controller, whether its class exists or not.
    let old = Ingress {
        legacy_class: text(Some("skiff")),
        ..Ingress::default()
    };
    assert!(is_ours(&old, &BTreeMap::new(), "skiff"));
}

#[test]
fn routes_lead_to_ready_endpoints() {
    let rules = vec![
        rule("one.test", &[("/", "a"), ("/b", "b")]),
        rule("*.wild.test", &[("/", "b")]),
    ];
    let mut objects = objects(vec![("web", ingress(1, rules))]);
    let slice = objects.slices.get_mut(&Key::new("n", "a-1")).unwrap();
    slice.endpoints.push(Endpoint {
        ip: [10, 0, 0, 9].into(),
        ready: false,
    });
    let made = plan(&objects, "skiff");
    assert_eq!(service_of(&made, "one.test", "/x").as_deref(), Some("n/a:80"));
    assert_eq!(service_of(&made, "one.test", "/b/x").as_deref(), Some("n/b:80"));
    assert_eq!(service_of(&made, "x.wild.test", "/").as_deref(), Some("n/b:80"));
    assert_eq!(service_of(&made, "wild.test", "/"), None);
    assert_eq!(problems(&made), []);
    let addresses = |plan: &Plan| plan.table.route("one.test", "/").unwrap().upstream.endpoints.clone();
    assert_eq!(addresses(&made), ["10.0.0.1:8080".parse().unwrap()]);
    // The last one that serves while it ends is better than none.
    objects
        .slices
        .get_mut(&Key::new("n", "a-1"))
        .unwrap()
        .endpoints
        .remove(0);
    assert_eq!(addresses(&plan(&objects, "skiff")), ["10.0.0.9:8080".parse().unwrap()]);
}

#[test]
fn ports_by_name_and_number_and_protocol() {
    let mut objects = objects(vec![]);
    let port = |name: &str, number, protocol| ServicePort {
        name: name.to_owned(),
        number,
        protocol,
        app_protocol: "x".to_owned(),
    };
    let ports = vec![
        port("web", 80, Protocol::Http1),
        port("rpc", 81, Protocol::H2c),
        port("tls", 82, Protocol::Unknown),
    ];
    objects
        .services
        .insert(Key::new("n", "s"), Service { external: false, ports });
    objects.services.insert(
        Key::new("n", "name"),
        Service {
            external: true,
            ports: Vec::new(),
        },
    );
    let slice = Slice {
        service: "s".to_owned(),
        ports: vec![("web".to_owned(), 8080), ("rpc".to_owned(), 9090)],
        endpoints: vec![Endpoint {
            ip: [10, 0, 0, 5].into(),
            ready: true,
        }],
    };
    objects.slices.insert(Key::new("n", "s-1"), slice);
    let name = |name: &str| PortRef::Name(name.to_owned());
    for (service, port, wanted) in [
        ("s", name("web"), Ok((Protocol::Http1, 8080))),
        ("s", PortRef::Number(80), Ok((Protocol::Http1, 8080))),
        ("s", name("rpc"), Ok((Protocol::H2c, 9090))),
        ("s", PortRef::Number(81), Ok((Protocol::H2c, 9090))),
        ("s", PortRef::Number(8080), Err("PortNotFound")),
        ("s", name("other"), Err("PortNotFound")),
        ("s", name("tls"), Err("UnsupportedProtocol")),
        ("absent", PortRef::Number(80), Err("ServiceNotFound")),
        ("name", PortRef::Number(80), Err("UnsupportedBackend")),
    ] {
        let backend = Backend::Service {
            name: service.to_owned(),
            port: port.clone(),
        };
        let mut wrong = ingress(1, Vec::new());
        wrong.default_backend = Some(backend);
        objects.ingresses.insert(Key::new("n", "i"), wrong);
        let made = plan(&objects, "skiff");
        let upstream = &made.table.route("any", "/").unwrap().upstream;
        let found = match made.problems.first() {
            Some(problem) => Err(problem.reason),
            None => Ok((upstream.protocol, upstream.endpoints[0].port())),
        };
        assert_eq!(found, wanted, "{service} {port}");
        assert_eq!(found.is_err(), upstream.endpoints.is_empty());
    }
}

#[test]
fn the_older_ingress_has_what_two_want() {
    let young = ingress(2, vec![rule("one.test", &[("/", "b"), ("/more", "b")])]);
    let old = ingress(1, vec![rule("one.test", &[("/", "a")])]);
    let made = plan(&objects(vec![("1-young", young), ("2-old", old)]), "skiff");
    assert_eq!(service_of(&made, "one.test", "/").as_deref(), Some("n/a:80"));
    assert_eq!(service_of(&made, "one.test", "/more").as_deref(), Some("n/b:80"));
    assert_eq!(problems(&made), [("1-young", "PathTaken")]);
}

#[test]
fn default_backends_answer_what_nothing_matches() {
    let mut with_rules = ingress(1, vec![rule("one.test", &[("/x", "b")])]);
    with_rules.default_backend = Some(backend("a"));
    let mut alone = ingress(2, Vec::new());
    alone.default_backend = Some(backend("b"));
    let made = plan(&objects(vec![("rules", with_rules.clone()), ("alone", alone)]), "skiff");
    assert_eq!(service_of(&made, "one.test", "/other").as_deref(), Some("n/a:80"));
    assert_eq!(service_of(&made, "other.test", "/").as_deref(), Some("n/b:80"));
    // Without one that has no rules, the documentation's words hold: what matches no rule.
    let made = plan(&objects(vec![("rules", with_rules)]), "skiff");
    assert_eq!(service_of(&made, "other.test", "/").as_deref(), Some("n/a:80"));
    let other = Ingress {
        class: Some("other".to_owned()),
        default_backend: Some(backend("a")),
        ..Ingress::default()
    };
    assert_eq!(
        service_of(&plan(&objects(vec![("not-ours", other)]), "skiff"), "x", "/"),
        None
    );
}

#[test]
fn certificates_are_found_by_name_and_wildcard() {
    let mut web = ingress(
        1,
        vec![rule("one.test", &[("/", "a")]), rule("x.wild.test", &[("/", "a")])],
    );
    web.tls = vec![tls(&["one.test"], "one"), tls(&["*.wild.test"], "wild")];
    let mut objects = objects(vec![("web", web)]);
    objects.secrets.insert(Key::new("n", "one"), secret("one.test"));
    objects.secrets.insert(Key::new("n", "wild"), secret("*.wild.test"));
    let made = plan(&objects, "skiff");
    assert_eq!(problems(&made), []);
    let shown = |name: &str, secret: &str| {
        let wanted = objects.secrets[&Key::new("n", secret)]
            .certified_key()
            .as_ref()
            .unwrap();
        made.table
            .certificate(name)
            .is_some_and(|found| Arc::ptr_eq(&found, wanted))
    };
    assert!(shown("one.test", "one") && shown("x.wild.test", "wild") && shown("y.wild.test", "wild"));
    assert!(made.table.certificate("wild.test").is_none() && made.table.certificate("z.y.wild.test").is_none());
    let redirect = |host: &str| made.table.route(host, "/").unwrap().redirect;
    assert!(redirect("one.test") && redirect("x.wild.test"));
}

#[test]
fn tls_without_hosts_is_for_all_rules_and_redirects_can_be_turned_off() {
    let mut web = ingress(
        1,
        vec![rule("one.test", &[("/", "a")]), rule("two.test", &[("/", "a")])],
    );
    web.tls = vec![tls(&[], "one")];
    let mut plain = ingress(2, vec![rule("three.test", &[("/", "a")])]);
    plain.tls = vec![tls(&["three.test"], "one")];
    plain.options = Options {
        ssl_redirect: false,
        max_body: None,
    };
    let mut objects = objects(vec![("web", web), ("plain", plain)]);
    objects.secrets.insert(Key::new("n", "one"), secret("one.test"));
    let made = plan(&objects, "skiff");
    assert!(
        ["one.test", "two.test", "three.test"]
            .iter()
            .all(|host| made.table.certificate(host).is_some())
    );
    let redirect = |host: &str| made.table.route(host, "/").unwrap().redirect;
    assert_eq!(
        ["one.test", "two.test", "three.test"].map(redirect),
        [true, true, false]
    );
}

#[test]
fn a_broken_secret_takes_nothing_from_the_rest() {
    let with_tls = |created, host: &str, name: &str| {
        let mut ingress = ingress(created, vec![rule(host, &[("/", "a")])]);
        ingress.tls = vec![tls(&[host], name)];
        ingress
    };
    let mut objects = objects(vec![
        ("broken", with_tls(1, "broken.test", "broken")),
        ("fine", with_tls(2, "fine.test", "fine")),
        ("missing", with_tls(3, "missing.test", "missing")),
    ]);
    objects.secrets.insert(Key::new("n", "fine"), secret("fine.test"));
    objects
        .secrets
        .insert(Key::new("n", "broken"), Secret::new(b"junk".to_vec(), b"junk".to_vec()));
    let made = plan(&objects, "skiff");
    assert_eq!(
        problems(&made),
        [("broken", "InvalidCertificate"), ("missing", "SecretNotFound")]
    );
    let texts: Vec<_> = made.problems.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(
        texts,
        [
            "Secret n/broken: tls.crt holds no certificate in PEM form; the default certificate is shown for broken.test",
            "Secret n/missing is not there, or is not of type kubernetes.io/tls; the default certificate is shown for missing.test",
        ]
    );
    for host in ["broken.test", "fine.test", "missing.test"] {
        assert_eq!(
            service_of(&made, host, "/").as_deref(),
            Some("n/a:80"),
            "{host} is served"
        );
    }
    assert!(made.table.certificate("fine.test").is_some() && made.table.certificate("broken.test").is_none());
}

#[test]
fn two_certificates_for_one_host() {
    let with = |created, name: &str| {
        let mut ingress = ingress(created, vec![rule("one.test", &[("/", "a")])]);
        ingress.rules[0].paths[0].path = format!("/{created}");
        ingress.tls = vec![tls(&["one.test"], name)];
        ingress
    };
    let mut objects = objects(vec![
        ("first", with(1, "x")),
        ("second", with(2, "y")),
        ("third", with(3, "x")),
    ]);
    objects.secrets.insert(Key::new("n", "x"), secret("one.test"));
    objects.secrets.insert(Key::new("n", "y"), secret("one.test"));
    assert_eq!(problems(&plan(&objects, "skiff")), [("second", "CertificateTaken")]);
}
