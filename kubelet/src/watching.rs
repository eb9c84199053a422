//! Watches that go on, whatever happens to the API server: a failure is told once, and waited out for longer each time.

use std::time::Duration;

use futures::stream::{BoxStream, Stream, StreamExt as _, unfold};
use kube::runtime::watcher::{self, Event};

const FIRST: Duration = Duration::from_millis(100);
/// A server that is away comes back soon.
const AWAY: Duration = Duration::from_secs(5);
/// Rights do not change within a moment.
const REFUSED: Duration = Duration::from_secs(1);

/// The failures of one watch since it last worked.
#[derive(Debug)]
pub(crate) struct Failures {
    kind: Option<&'static str>,
    longest: Duration,
    last: Option<(Duration, bool)>,
}

impl Failures {
    /// Of a watch for `kind`; one that is refused asks again every `longest` in the end.
    pub(crate) fn of(kind: &'static str, longest: Duration) -> Self {
        Self {
            kind: Some(kind),
            longest,
            last: None,
        }
    }

    /// Of a watch for one object among many: whoever needs the object says why there is none.
    pub(crate) fn untold(longest: Duration) -> Self {
        Self {
            kind: None,
            longest,
            last: None,
        }
    }

    /// How long to wait after this one; tells of the first, and of the first refusal.
    pub(crate) fn pause(&mut self, error: &watcher::Error) -> Duration {
        let refused = is_refusal(error);
        let news = self.last.is_none_or(|(_, before)| refused && !before);
        if let (Some(kind), true) = (self.kind, news) {
            tracing::warn!(
                kind,
                error = skiff_daemon::error_chain(error),
                refused,
                "cannot watch; it is tried again, longer each time, and not told again"
            );
        }
        self.grow(refused)
    }

    fn grow(&mut self, refused: bool) -> Duration {
        let (first, longest) = if refused {
            (REFUSED, self.longest)
        } else {
            (FIRST, AWAY)
        };
        let delay = match self.last {
            Some((delay, before)) if before == refused => (delay * 2).min(longest),
            _ => first.min(longest),
        };
        self.last = Some((delay, refused));
        delay
    }

    /// It works.
    pub(crate) fn end(&mut self) {
        if let (Some(_), Some(kind)) = (self.last.take(), self.kind) {
            tracing::info!(kind, "watching again");
        }
    }
}

/// 401 and 403: the server is there, and says no.
fn is_refusal(error: &watcher::Error) -> bool {
    let code = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code,
        watcher::Error::WatchError(status) => status.code,
        _ => return false,
    };
    matches!(code, 401 | 403)
}

/// The events of a watch, without its failures.
pub(crate) fn patiently<T: Send + 'static>(
    failures: Failures,
    events: impl Stream<Item = watcher::Result<Event<T>>> + Send + 'static,
) -> BoxStream<'static, Event<T>> {
    let begin = (events.boxed(), failures);
    unfold(begin, |(mut events, mut failures)| async move {
        loop {
            match events.next().await? {
                Ok(event) => {
                    // A list that begins may yet fail.
                    if !matches!(event, Event::Init) {
                        failures.end();
                    }
                    return Some((event, (events, failures)));
                }
                Err(error) => tokio::time::sleep(failures.pause(&error)).await,
            }
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn away() -> watcher::Error {
        watcher::Error::NoResourceVersion
    }

    fn refusal() -> watcher::Error {
        let status = serde_json::from_value(serde_json::json!({"code": 403, "message": "no", "reason": "Forbidden"}));
        watcher::Error::WatchError(Box::new(status.unwrap()))
    }

    #[test]
    fn pauses_grow_to_their_limits_and_begin_anew() {
        let mut failures = Failures::of("pods", Duration::from_secs(60));
        let mut seconds = |error: &watcher::Error, times: usize| {
            let all: Vec<f64> = (0..times).map(|_| failures.pause(error).as_secs_f64()).collect();
            (all[0], all[times - 1])
        };
        assert_eq!(seconds(&away(), 8), (0.1, 5.0));
        assert_eq!(seconds(&refusal(), 8), (1.0, 60.0));
        assert_eq!(seconds(&away(), 2), (0.1, 0.2));
        failures.end();
        assert_eq!(failures.pause(&away()), FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_only_begins_ends_no_failure() {
        let begins = || Ok(Event::<u8>::Init);
        let script = vec![
            begins(),
            Err(refusal()),
            begins(),
            Err(refusal()),
            begins(),
            Ok(Event::InitDone),
            Err(refusal()),
            begins(),
        ];
        let start = Instant::now();
        let mut events = patiently(Failures::of("pods", AWAY), futures::stream::iter(script));
        let mut times = Vec::new();
        while let Some(event) = events.next().await {
            times.push((matches!(event, Event::Init), start.elapsed().as_secs()));
        }
        assert_eq!(times, [(true, 0), (true, 1), (true, 3), (false, 3), (true, 4)]);
    }
}
