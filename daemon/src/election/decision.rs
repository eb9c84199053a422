//! Who may lead, and for how long: decided from what was seen and when, without clocks of other machines.

use tokio::time::{Duration, Instant};

use super::Timing;

/// What a Lease says of its holder.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Record {
    /// Empty when the last holder has given it back.
    pub(super) holder: String,
    /// For how long after each sign of life others have to keep away.
    pub(super) duration: Duration,
    /// When the holder began, by its own clock.
    pub(super) acquired: Option<String>,
    /// The holder's last sign of life, by its own clock: only whether it changes matters.
    pub(super) renewed: Option<String>,
    /// How often the holder has changed.
    pub(super) transitions: i32,
}

/// A Lease as it was seen here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Sighting {
    pub(super) record: Record,
    /// Its resourceVersion.
    pub(super) version: String,
    /// Since when it says this, by our clock.
    pub(super) since: Instant,
}

/// What a candidate does next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Candidate {
    /// Nobody ever led: make the Lease.
    Create,
    /// Nobody leads any more: write ourselves into it.
    Take,
    /// Somebody leads; if nothing more is heard of them, not after this.
    Wait(Instant),
}

/// What a leader does next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Leader {
    /// Give a sign of life.
    Renew,
    /// Nothing until then.
    Wait(Instant),
    /// Stop working: others will take over soon.
    Stop,
}

impl Sighting {
    /// The Lease was seen; it counts as new only when it says something else than before.
    pub(super) fn follow(before: Option<Self>, record: Record, version: String, now: Instant) -> Self {
        let since = before
            .filter(|before| before.record == record)
            .map(|before| before.since);
        Self {
            record,
            version,
            since: since.unwrap_or(now),
        }
    }
}

pub(super) fn candidate(seen: Option<&Sighting>, identity: &str, now: Instant) -> Candidate {
    let Some(seen) = seen else {
        return Candidate::Create;
    };
    let free_at = seen.since + seen.record.duration;
    if seen.record.holder.is_empty() || seen.record.holder == identity || now >= free_at {
        return Candidate::Take;
    }
    Candidate::Wait(free_at)
}

/// `renewed` is when the last sign of life that arrived was sent, `tried` when the last was.
pub(super) fn leader(renewed: Instant, tried: Instant, timing: &Timing, now: Instant) -> Leader {
    let deadline = renewed + timing.renew_deadline;
    let next = tried + timing.retry_period;
    if now >= deadline {
        Leader::Stop
    } else if now >= next {
        Leader::Renew
    } else {
        Leader::Wait(next.min(deadline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn record(holder: &str, renewed: &str) -> Record {
        Record {
            holder: holder.to_owned(),
            duration: 15 * SECOND,
            renewed: Some(renewed.to_owned()),
            ..Record::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_candidate_takes_what_is_free() {
        let start = Instant::now();
        let seen = |holder: &str| Sighting::follow(None, record(holder, "1"), "7".to_owned(), start);
        let cases = [
            ("nobody ever led", None, 0, Candidate::Create),
            ("given back", Some(seen("")), 0, Candidate::Take),
            ("ours from before", Some(seen("me")), 0, Candidate::Take),
            (
                "another leads",
                Some(seen("you")),
                0,
                Candidate::Wait(start + 15 * SECOND),
            ),
            (
                "another is late",
                Some(seen("you")),
                14,
                Candidate::Wait(start + 15 * SECOND),
            ),
            ("another is gone", Some(seen("you")), 15, Candidate::Take),
        ];
        for (name, seen, after, expected) in cases {
            assert_eq!(
                candidate(seen.as_ref(), "me", start + after * SECOND),
                expected,
                "{name}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_news_counts_as_a_sign_of_life() {
        let start = Instant::now();
        let first = Sighting::follow(None, record("you", "1"), "7".to_owned(), start);
        let again = Sighting::follow(Some(first.clone()), record("you", "1"), "8".to_owned(), start + SECOND);
        assert_eq!(
            (again.since, again.version.as_str()),
            (start, "8"),
            "somebody else wrote a label"
        );
        let renewed = Sighting::follow(Some(again), record("you", "2"), "9".to_owned(), start + 2 * SECOND);
        assert_eq!(renewed.since, start + 2 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_stops_before_others_may_begin() {
        let start = Instant::now();
        let timing = Timing::default();
        let cases = [
            ("just renewed", 0, 0, 0, Leader::Wait(start + 2 * SECOND)),
            ("due", 0, 0, 2, Leader::Renew),
            ("failing", 0, 8, 9, Leader::Wait(start + 10 * SECOND)),
            ("failing, but in time", 0, 7, 9, Leader::Renew),
            ("failed too long", 0, 8, 10, Leader::Stop),
            ("asleep for long", 0, 0, 60, Leader::Stop),
            ("well", 60, 60, 61, Leader::Wait(start + 62 * SECOND)),
        ];
        for (name, renewed, tried, now, expected) in cases {
            let at = |seconds: u32| start + seconds * SECOND;
            assert_eq!(leader(at(renewed), at(tried), &timing, at(now)), expected, "{name}");
        }
    }
}
