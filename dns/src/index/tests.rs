use proptest::prelude::*;

use super::*;

fn ip(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn service(last: u8) -> Service {
    Service {
        kind: Kind::ClusterIps(vec![ip(last)]),
        ports: vec![],
        publish_not_ready: false,
    }
}

fn slice(last: u8, hostname: &str) -> Slice {
    Slice {
        endpoints: vec![Endpoint {
            ip: ip(last),
            hostname: Some(hostname.into()),
            ready: true,
        }],
        ports: vec![],
    }
}

fn set_slice(name: &str, service: &str, content: Slice) -> Change {
    Change::Slice {
        key: Key::new("n", name),
        service: Some(service.into()),
        slice: content,
    }
}

/// Nothing is remembered of what is gone.
fn assert_empty(index: &Index) {
    assert!(index.namespaces.is_empty(), "{index:?}");
    assert!(index.slices.is_empty(), "{index:?}");
    assert!(index.by_cluster_ip.is_empty(), "{index:?}");
    assert!(index.by_endpoint.is_empty(), "{index:?}");
}

#[test]
fn a_list_takes_away_what_it_does_not_mention() {
    let mut index = Index::default();
    index.apply(Change::Namespace(Key::new("", "n")));
    for name in ["a", "b"] {
        index.apply(Change::Service(Key::new("n", name), service(1)));
        index.apply(set_slice(name, name, slice(2, name)));
    }
    for kind in [Watched::Namespaces, Watched::Services, Watched::Slices] {
        index.apply(Change::Begin(kind));
    }
    index.apply(Change::Service(Key::new("n", "a"), service(1)));
    index.apply(Change::Done(Watched::Services));
    assert!(index.service("n", "a").is_some() && index.service("n", "b").is_none());
    assert_eq!(index.by_cluster_ip(ip(1)), Some(&Key::new("n", "a")));
    assert!(index.has_namespace("n"), "its list is not complete yet");
    index.apply(Change::Done(Watched::Namespaces));
    index.apply(Change::Done(Watched::Slices));
    assert!(!index.has_namespace("n"));
    index.apply(Change::Gone(Watched::Services, Key::new("n", "a")));
    assert_empty(&index);
}

#[test]
fn a_slice_may_come_before_its_service_and_change_it() {
    let mut index = Index::default();
    index.apply(set_slice("s", "a", slice(2, "h")));
    assert!(index.service("n", "a").is_none());
    assert_eq!(index.slice_names("n", "a"), ["s".into()]);
    index.apply(Change::Service(Key::new("n", "a"), service(1)));
    assert_eq!(index.service("n", "a").unwrap().1.endpoints(None).count(), 1);
    index.apply(set_slice("s", "b", slice(3, "h")));
    assert_eq!(index.service("n", "a").unwrap().1.endpoints(None).count(), 0);
    assert_eq!(index.by_endpoint(ip(2)), []);
    assert_eq!(index.by_endpoint(ip(3)).len(), 1);
}

#[test]
fn an_address_that_has_a_new_owner_stays_with_it() {
    let mut index = Index::default();
    index.apply(Change::Service(Key::new("n", "old"), service(1)));
    index.apply(Change::Service(Key::new("n", "new"), service(1)));
    index.apply(Change::Gone(Watched::Services, Key::new("n", "old")));
    assert_eq!(index.by_cluster_ip(ip(1)), Some(&Key::new("n", "new")));
}

#[derive(Clone, Debug)]
enum Step {
    Namespace(u8, bool),
    Service(u8, Option<u8>),
    Slice(u8, Option<(u8, u8, u8)>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..3_u8, any::<bool>()).prop_map(|(name, there)| Step::Namespace(name, there)),
        (0..4_u8, prop::option::of(0..6_u8)).prop_map(|(name, ip)| Step::Service(name, ip)),
        (0..4_u8, prop::option::of((0..4_u8, 0..6_u8, 0..3_u8))).prop_map(|(name, of)| Step::Slice(name, of)),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn whatever_happens_nothing_is_left_of_what_is_gone(steps in steps()) {
        let mut index = Index::default();
        let key = |name: u8| Key::new("n", &name.to_string());
        for step in steps {
            index.apply(match step {
                Step::Namespace(name, true) => Change::Namespace(Key::new("", &name.to_string())),
                Step::Namespace(name, false) => Change::Gone(Watched::Namespaces, Key::new("", &name.to_string())),
                Step::Service(name, Some(ip)) => Change::Service(key(name), service(ip)),
                Step::Service(name, None) => Change::Gone(Watched::Services, key(name)),
                Step::Slice(name, Some((of, ip, host))) => {
                    set_slice(&name.to_string(), &of.to_string(), slice(ip, &host.to_string()))
                }
                Step::Slice(name, None) => Change::Gone(Watched::Slices, key(name)),
            });
        }
        for name in 0..4_u8 {
            index.apply(Change::Gone(Watched::Namespaces, Key::new("", &name.to_string())));
            index.apply(Change::Gone(Watched::Services, key(name)));
            index.apply(Change::Gone(Watched::Slices, key(name)));
        }
        assert_empty(&index);
    }
}
