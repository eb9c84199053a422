//! Which images go: pure.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use skiff_cri::Image;
use tokio::time::Instant;

/// When images are removed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Percent of the disk in use at which removing begins,
    pub(super) high: u64,
    /// and down to which it goes.
    pub(super) low: u64,
    /// A younger image stays: its pod may be about to start.
    pub(super) minimum_age: Duration,
    /// An image that was not used for longer goes in any case.
    pub(super) maximum_age: Option<Duration>,
}

/// What is known of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) size: u64,
    pub(super) first_seen: Instant,
    /// None as long as no look has seen it in use.
    pub(super) last_used: Option<Instant>,
    /// In use now, pinned, or the pause image.
    pub(super) kept: bool,
}

impl Record {
    /// When it was last of use to anybody.
    fn idle_since(&self) -> Instant {
        self.last_used.unwrap_or(self.first_seen)
    }
}

/// Brings what is known up to date. `used` are the names and ids that containers name, `kept` those never to be removed.
pub(super) fn note(
    known: &mut HashMap<String, Record>,
    images: &[Image],
    used: &BTreeSet<String>,
    kept: &BTreeSet<String>,
    now: Instant,
) {
    let present: HashSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
    known.retain(|id, _| present.contains(id.as_str()));
    for image in images {
        let names = || image.repo_tags.iter().chain(&image.repo_digests).chain([&image.id]);
        let in_use = names().any(|name| used.contains(name));
        let record = known.entry(image.id.clone()).or_insert_with(|| Record {
            size: image.size,
            first_seen: now,
            last_used: None,
            kept: false,
        });
        if in_use {
            record.last_used = Some(now);
        }
        record.size = image.size;
        record.kept = in_use || image.pinned || names().any(|name| kept.contains(name));
    }
}

/// Images that were of no use for too long.
pub(super) fn too_old(known: &HashMap<String, Record>, rules: &Rules, now: Instant) -> Vec<String> {
    let Some(limit) = rules.maximum_age else {
        return Vec::new();
    };
    let mut old: Vec<_> = known
        .iter()
        .filter(|(_, record)| !record.kept && now.duration_since(record.idle_since()) > limit)
        .map(|(id, _)| id.clone())
        .collect();
    old.sort();
    old
}

/// Bytes to free, where too much of the disk is in use.
pub(super) fn to_free(capacity: u64, available: u64, rules: &Rules) -> Option<u64> {
    // In 128 bits: a hundred times a disk must fit.
    let (capacity, available) = (u128::from(capacity), u128::from(available.min(capacity)));
    let used_percent = 100 - available * 100 / capacity.max(1);
    if used_percent < u128::from(rules.high) {
        return None;
    }
    let wanted = (capacity * u128::from(100 - rules.low) / 100).saturating_sub(available);
    u64::try_from(wanted).ok()
}

/// The images to remove for so many bytes, with their sizes: those first that were of no use for longest.
pub(super) fn least_used(
    known: &HashMap<String, Record>,
    bytes: u64,
    rules: &Rules,
    now: Instant,
) -> Vec<(String, u64)> {
    let mut candidates: Vec<_> = known
        .iter()
        .filter(|(_, record)| !record.kept && now.duration_since(record.first_seen) >= rules.minimum_age)
        .collect();
    // One that was never used goes before one that was.
    candidates.sort_by_key(|(id, record)| (record.last_used, record.first_seen, (*id).clone()));
    let mut chosen = Vec::new();
    let mut freed: u64 = 0;
    for (id, record) in candidates {
        if freed >= bytes {
            break;
        }
        freed = freed.saturating_add(record.size);
        chosen.push((id.clone(), record.size));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        high: 85,
        low: 80,
        minimum_age: Duration::from_secs(120),
        maximum_age: Some(Duration::from_secs(3600)),
    };

    fn image(id: &str, tag: &str, pinned: bool) -> Image {
        Image {
            id: id.into(),
            repo_tags: vec![tag.into()],
            size: 100,
            pinned,
            ..Image::default()
        }
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_goes_and_in_which_order() {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let images = [
            image("sha256:used", "used:1", false),
            image("sha256:once", "once:1", false),
            image("sha256:never", "never:1", false),
            image("sha256:pinned", "pinned:1", true),
            image("sha256:pause", "pause:1", false),
        ];
        let mut known = HashMap::new();
        note(
            &mut known,
            &images,
            &set(&["used:1", "sha256:once"]),
            &set(&["pause:1"]),
            at(0),
        );
        note(&mut known, &images, &set(&["used:1"]), &set(&["pause:1"]), at(10));
        let late = image("sha256:late", "late:1", false);
        let images = [&images[..], &[late]].concat();
        note(&mut known, &images, &set(&["used:1"]), &set(&["pause:1"]), at(100));
        let ids = |bytes: u64, second: u64| -> Vec<String> {
            let chosen = least_used(&known, bytes, &RULES, at(second));
            chosen.into_iter().map(|(id, _)| id).collect()
        };
        assert_eq!(ids(u64::MAX, 110), Vec::<String>::new(), "too young");
        assert_eq!(ids(u64::MAX, 130), ["sha256:never", "sha256:once"]);
        assert_eq!(ids(1, 130), ["sha256:never"]);
        assert_eq!(ids(u64::MAX, 300), ["sha256:never", "sha256:late", "sha256:once"]);
        assert_eq!(too_old(&known, &RULES, at(3600)), Vec::<String>::new());
        assert_eq!(too_old(&known, &RULES, at(3605)), ["sha256:never", "sha256:once"]);
        let never = Rules {
            maximum_age: None,
            ..RULES
        };
        assert!(too_old(&known, &never, at(99_999)).is_empty());
        note(&mut known, &images[..1], &set(&[]), &set(&[]), at(400));
        assert_eq!(known.len(), 1, "what is gone is forgotten");
    }

    #[test]
    fn how_much_is_freed() {
        for (available, wanted) in [(20, None), (16, None), (15, Some(5)), (0, Some(20)), (100, None)] {
            assert_eq!(to_free(100, available, &RULES), wanted, "{available} of 100 left");
        }
        assert_eq!(to_free(u64::MAX, 0, &RULES), Some(u64::MAX / 5));
    }
}
