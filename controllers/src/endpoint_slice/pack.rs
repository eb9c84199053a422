//! Packs endpoints into slices with as few writes as possible: every slice that changes goes to every node.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use skiff_api::k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

use super::desired::Ports;
use crate::view::View;

/// Upstream's `--max-endpoints-per-slice`.
const MAX_ENDPOINTS: usize = 100;

/// What a slice is to hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) address_type: String,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) ports: Vec<EndpointPort>,
}

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<Content>,
    pub(super) update: Vec<(Arc<EndpointSlice>, Content)>,
    pub(super) delete: Vec<Arc<EndpointSlice>>,
}

impl Plan {
    pub(super) fn is_empty(&self) -> bool {
        self.create.is_empty() && self.update.is_empty() && self.delete.is_empty()
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.create.extend(other.create);
        self.update.extend(other.update);
        self.delete.extend(other.delete);
    }
}

/// A slice while it is being packed.
struct Draft {
    slice: Arc<EndpointSlice>,
    endpoints: Vec<Endpoint>,
    changed: bool,
}

/// Plans the slices of one address type.
pub(super) fn pack(
    existing: Vec<Arc<EndpointSlice>>,
    desired: BTreeMap<Ports, Vec<Endpoint>>,
    address_type: &str,
    labels: &BTreeMap<String, String>,
) -> Plan {
    let mut by_ports: BTreeMap<Ports, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in existing {
        by_ports
            .entry(Ports::of(slice.ports.as_deref().unwrap_or_default()))
            .or_default()
            .push(slice);
    }
    let mut plan = Plan::default();
    let mut kept = 0;
    for (ports, endpoints) in desired {
        let slices = by_ports.remove(&ports).unwrap_or_default();
        kept += pack_ports(&mut plan, slices, &ports, endpoints, address_type, labels);
    }
    plan.delete.extend(by_ports.into_values().flatten());
    plan.delete.sort_by(|a, b| a.name().cmp(b.name()));
    if kept == 0 && plan.update.is_empty() && plan.create.is_empty() {
        keep_placeholder(&mut plan, address_type, labels);
    }
    recycle(&mut plan);
    plan
}

/// Packs the endpoints with one set of ports; returns how many slices stay as they are.
fn pack_ports(
    plan: &mut Plan,
    slices: Vec<Arc<EndpointSlice>>,
    ports: &Ports,
    endpoints: Vec<Endpoint>,
    address_type: &str,
    labels: &BTreeMap<String, String>,
) -> usize {
    let mut wanted: HashMap<Identity, Endpoint> = endpoints
        .into_iter()
        .map(|endpoint| (identity(&endpoint), endpoint))
        .collect();
    let mut drafts: Vec<Draft> = slices
        .into_iter()
        .map(|slice| keep_wanted(slice, &mut wanted, labels))
        .collect();
    let mut rest: Vec<Endpoint> = wanted.into_values().collect();
    rest.sort_by_key(identity);

    // First into slices that are written anyway, the fullest first.
    drafts.sort_by_key(|draft| (!draft.changed, std::cmp::Reverse(draft.endpoints.len())));
    for draft in drafts
        .iter_mut()
        .filter(|draft| draft.changed && !draft.endpoints.is_empty())
    {
        let room = MAX_ENDPOINTS.saturating_sub(draft.endpoints.len());
        draft.endpoints.extend(rest.drain(..room.min(rest.len())));
    }
    let content = |endpoints| Content {
        address_type: address_type.to_owned(),
        endpoints,
        ports: ports.to_ports(),
    };
    // What is left and fits into one untouched slice goes to the fullest that has the room; otherwise into new ones.
    while !rest.is_empty() {
        let fits = |draft: &&mut Draft| !draft.changed && draft.endpoints.len() + rest.len() <= MAX_ENDPOINTS;
        let fullest = drafts.iter_mut().filter(fits).max_by_key(|draft| draft.endpoints.len());
        match fullest {
            Some(draft) if rest.len() < MAX_ENDPOINTS => {
                draft.changed = true;
                draft.endpoints.append(&mut rest);
            }
            _ => {
                let new: Vec<_> = rest.drain(..MAX_ENDPOINTS.min(rest.len())).collect();
                plan.create.push(content(new));
            }
        }
    }
    let mut kept = 0;
    for draft in drafts {
        if draft.endpoints.is_empty() {
            plan.delete.push(draft.slice);
        } else if draft.changed {
            plan.update.push((draft.slice, content(draft.endpoints)));
        } else {
            kept += 1;
        }
    }
    kept
}

/// Takes from `wanted` what the slice holds already, in its newest form.
fn keep_wanted(
    slice: Arc<EndpointSlice>,
    wanted: &mut HashMap<Identity, Endpoint>,
    labels: &BTreeMap<String, String>,
) -> Draft {
    let mut changed = slice.labels() != labels;
    let held = slice.endpoints.as_deref().unwrap_or_default();
    let mut endpoints = Vec::with_capacity(held.len());
    for present in held {
        match wanted.remove(&identity(present)) {
            Some(endpoint) if same(present, &endpoint) => endpoints.push(present.clone()),
            Some(endpoint) => {
                changed = true;
                endpoints.push(endpoint);
            }
            None => changed = true,
        }
    }
    Draft {
        slice,
        endpoints,
        changed,
    }
}

/// A Service without endpoints has one empty slice, so that consumers can tell it from one not looked at yet.
fn keep_placeholder(plan: &mut Plan, address_type: &str, labels: &BTreeMap<String, String>) {
    let is_placeholder = |slice: &Arc<EndpointSlice>| {
        slice.endpoints.as_deref().unwrap_or_default().is_empty()
            && slice.ports.as_deref().unwrap_or_default().is_empty()
            && slice.labels() == labels
    };
    match plan.delete.iter().position(is_placeholder) {
        Some(at) => drop(plan.delete.remove(at)),
        None => plan.create.push(Content {
            address_type: address_type.to_owned(),
            ..Content::default()
        }),
    }
}

/// One update costs less than a deletion and a creation.
fn recycle(plan: &mut Plan) {
    while !plan.create.is_empty()
        && let Some(slice) = plan.delete.pop()
    {
        plan.update.push((slice, plan.create.remove(0)));
    }
}

type Identity = (String, Vec<String>);

fn identity(endpoint: &Endpoint) -> Identity {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    (uid.unwrap_or_default(), endpoint.addresses.clone())
}

/// Equal but for what the server or later features add.
fn same(present: &Endpoint, wanted: &Endpoint) -> bool {
    present.conditions == wanted.conditions
        && present.hostname == wanted.hostname
        && present.node_name == wanted.node_name
        && present.zone == wanted.zone
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn endpoint(number: usize, ready: bool) -> Endpoint {
        serde_json::from_value(json!({
            "addresses": [format!("10.0.{}.{}", number / 250, number % 250)],
            "conditions": {"ready": ready},
            "targetRef": {"uid": format!("{number:04}")},
        }))
        .unwrap()
    }

    fn ports() -> Value {
        json!([{"name": "", "protocol": "TCP", "port": 80}])
    }

    fn slice(name: &str, range: std::ops::Range<usize>) -> Arc<EndpointSlice> {
        let endpoints: Vec<_> = range.map(|number| endpoint(number, true)).collect();
        let slice =
            json!({"metadata": {"name": name}, "addressType": "IPv4", "endpoints": endpoints, "ports": ports()});
        Arc::new(serde_json::from_value(slice).unwrap())
    }

    fn desired(numbers: impl Iterator<Item = usize>) -> BTreeMap<Ports, Vec<Endpoint>> {
        let ports: Vec<EndpointPort> = serde_json::from_value(ports()).unwrap();
        BTreeMap::from([(
            Ports::of(&ports),
            numbers.map(|number| endpoint(number, true)).collect(),
        )])
    }

    /// Sizes created; names and sizes updated; names deleted.
    fn outcome(plan: &Plan) -> (Vec<usize>, Vec<(&str, usize)>, Vec<&str>) {
        (
            plan.create.iter().map(|content| content.endpoints.len()).collect(),
            plan.update
                .iter()
                .map(|(slice, content)| (slice.name(), content.endpoints.len()))
                .collect(),
            plan.delete.iter().map(|slice| slice.name()).collect(),
        )
    }

    fn run(existing: Vec<Arc<EndpointSlice>>, desired: BTreeMap<Ports, Vec<Endpoint>>) -> Plan {
        pack(existing, desired, "IPv4", &BTreeMap::new())
    }

    #[test]
    fn endpoints_are_cut_into_slices_of_a_hundred() {
        assert_eq!(
            outcome(&run(vec![], desired(0..250))),
            (vec![100, 100, 50], vec![], vec![])
        );
    }

    #[test]
    fn nothing_changed_means_nothing_written() {
        assert_eq!(
            outcome(&run(vec![slice("a", 0..100), slice("b", 100..120)], desired(0..120))),
            (vec![], vec![], vec![])
        );
    }

    #[test]
    fn one_more_goes_to_the_fullest_with_room() {
        let existing = vec![slice("full", 0..100), slice("most", 100..150), slice("few", 150..160)];
        assert_eq!(
            outcome(&run(existing, desired(0..161))),
            (vec![], vec![("most", 51)], vec![])
        );
    }

    #[test]
    fn replacements_stay_in_the_slice_that_changes_anyway() {
        let existing = vec![slice("a", 0..90), slice("b", 100..150)];
        let plan = run(existing, desired((1..90).chain(100..150).chain([500])));
        assert_eq!(outcome(&plan), (vec![], vec![("a", 90)], vec![]));
    }

    #[test]
    fn an_emptied_slice_is_reused_or_removed() {
        let existing = || vec![slice("a", 0..10), slice("b", 10..20)];
        assert_eq!(outcome(&run(existing(), desired(0..10))), (vec![], vec![], vec!["b"]));
        assert_eq!(
            outcome(&run(vec![slice("a", 0..10)], desired(50..55))),
            (vec![], vec![("a", 5)], vec![])
        );
    }

    #[test]
    fn a_changed_state_is_an_update() {
        let ports: Vec<EndpointPort> = serde_json::from_value(ports()).unwrap();
        let wanted = BTreeMap::from([(Ports::of(&ports), vec![endpoint(0, false), endpoint(1, true)])]);
        assert_eq!(
            outcome(&run(vec![slice("a", 0..2)], wanted)),
            (vec![], vec![("a", 2)], vec![])
        );
    }

    #[test]
    fn without_endpoints_one_empty_slice_stands() {
        let plan = run(vec![], BTreeMap::new());
        assert_eq!(outcome(&plan), (vec![0], vec![], vec![]));
        let plan = run(vec![slice("a", 0..3)], BTreeMap::new());
        assert_eq!(
            outcome(&plan),
            (vec![], vec![("a", 0)], vec![]),
            "the old slice becomes the placeholder"
        );
        let placeholder = json!({"metadata": {"name": "p"}, "addressType": "IPv4", "endpoints": []});
        let placeholder: Arc<EndpointSlice> = Arc::new(serde_json::from_value(placeholder).unwrap());
        assert_eq!(
            outcome(&run(vec![placeholder], BTreeMap::new())),
            (vec![], vec![], vec![])
        );
    }
}
