//! ImageLocality: nodes that have the pod's images need not fetch them.

use std::collections::HashMap;

use crate::cache::Snapshot;
use crate::framework::{MAX_SCORE, Plugin, PreScore, Score};
use crate::model::{Node, Pod};

const MEGABYTE: i64 = 1024 * 1024;
/// Less than this is fetched in no time.
const SMALL: i64 = 23 * MEGABYTE;
/// More than this for each container makes no further difference.
const LARGE: i64 = 1000 * MEGABYTE;

/// Rates nodes by the bytes of the pod's images that they have.
#[derive(Debug)]
pub(crate) struct ImageLocality;

struct Local {
    /// Each image, with the share of all nodes that have it, in thousandths: one image must not draw all pods to one node.
    images: Vec<(String, i64)>,
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }
}

impl PreScore for ImageLocality {
    fn pre_score<'a>(
        &'a self,
        pod: &'a Pod,
        snapshot: &'a Snapshot,
        feasible: &[&'a Node],
    ) -> Option<Box<dyn Score + 'a>> {
        if feasible.len() < 2 || pod.wants.images.is_empty() {
            return None;
        }
        let total = i64::try_from(snapshot.nodes.len()).unwrap_or(i64::MAX).max(1);
        let mut shares: HashMap<String, i64> = HashMap::new();
        let images = pod.wants.images.iter().map(|image| {
            let name = normalized(image);
            let share = *shares.entry(name.clone()).or_insert_with(|| {
                let having = snapshot
                    .nodes
                    .iter()
                    .filter(|node| node.images.contains_key(&name))
                    .count();
                i64::try_from(having).unwrap_or(i64::MAX) * 1000 / total
            });
            (name, share)
        });
        Some(Box::new(Local {
            images: images.collect(),
        }))
    }
}

impl Score for Local {
    fn score(&self, node: &Node) -> i64 {
        let bytes: i64 = (self.images.iter())
            .filter_map(|(name, share)| node.images.get(name).map(|bytes| bytes.saturating_mul(*share) / 1000))
            .sum();
        let large = LARGE.saturating_mul(i64::try_from(self.images.len()).unwrap_or(1));
        MAX_SCORE * (bytes.clamp(SMALL, large) - SMALL) / (large - SMALL)
    }
}

/// An image without tag or digest means its latest, as nodes report it.
fn normalized(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') {
        return image.to_owned();
    }
    format!("{image}:latest")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::testing::{node, pod};
    use crate::plugins::testing::scores;

    #[test]
    fn nodes_that_have_the_images_are_better() {
        let with = |name: &str, images: &[(&str, i64)]| {
            let mut node = node(name, json!({}));
            node.images = images
                .iter()
                .map(|&(image, size)| (image.to_owned(), size * MEGABYTE))
                .collect();
            node
        };
        let snapshot = Snapshot::of([
            with("none", &[]),
            with("small", &[("web:latest", 20)]),
            with("big", &[("web:latest", 2000), ("db:1", 4000)]),
        ]);
        let asks = |images: &[&str]| {
            let containers: Vec<_> = images
                .iter()
                .map(|image| json!({"name": "c", "image": image}))
                .collect();
            pod("p", json!({"containers": containers}))
        };
        // Two thirds of 2,000 MB are more than the most that counts for one container.
        assert_eq!(
            scores(&ImageLocality, &asks(&["web"]), &snapshot),
            Some(vec![0, 0, 100])
        );
        assert_eq!(
            scores(&ImageLocality, &asks(&["web", "db:1"]), &snapshot),
            Some(vec![0, 0, 100])
        );
        assert_eq!(scores(&ImageLocality, &asks(&["db:2"]), &snapshot), Some(vec![0, 0, 0]));
    }

    #[test]
    fn names_are_completed() {
        let cases = [
            ("web", "web:latest"),
            ("host:5000/web", "host:5000/web:latest"),
            ("web:1", "web:1"),
            ("web@sha256:00", "web@sha256:00"),
        ];
        for (image, expected) in cases {
            assert_eq!(normalized(image), expected);
        }
    }
}
