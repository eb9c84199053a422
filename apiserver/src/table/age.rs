//! Times as people read them.

use jiff::Timestamp;
use serde_json::Value;
use skiff_api::meta;

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const YEAR_HOURS: i64 = 24 * 365;

/// A duration in at most two units, coarser the longer it is.
pub fn human_duration(seconds: i64) -> String {
    let two = |big: i64, unit: char, small: i64, small_unit: char| match small {
        0 => format!("{big}{unit}"),
        _ => format!("{big}{unit}{small}{small_unit}"),
    };
    let (minutes, hours) = (seconds / MINUTE, seconds / HOUR);
    match seconds {
        // Clocks of two machines may differ a little.
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => two(minutes, 'm', seconds % MINUTE, 's'),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => two(hours / 24, 'd', hours % 24, 'h'),
        _ if hours < YEAR_HOURS * 2 => format!("{}d", hours / 24),
        _ if hours < YEAR_HOURS * 8 => two(hours / YEAR_HOURS, 'y', hours / 24 % 365, 'd'),
        _ => format!("{}y", hours / YEAR_HOURS),
    }
}

/// Time from `from` to `to`, both as they stand in objects.
pub(super) fn between(from: &str, to: Timestamp) -> Option<String> {
    let from = meta::parse_time(from)?;
    Some(human_duration(to.as_second() - from.as_second()))
}

/// Age of a point in time, `<unknown>` when it is unset.
pub(super) fn since(time: &str, now: Timestamp) -> String {
    between(time, now).unwrap_or_else(|| "<unknown>".to_owned())
}

/// The `Age` cell.
pub(super) fn of(object: &Value, now: Timestamp) -> Value {
    since(meta::creation_timestamp(object), now).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        const DAY: i64 = 24 * HOUR;
        for (seconds, text) in [
            (-2, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (599, "9m59s"),
            (600, "10m"),
            (179 * MINUTE + 59, "179m"),
            (180 * MINUTE, "3h"),
            (3 * HOUR + 5 * MINUTE, "3h5m"),
            (8 * HOUR + 59 * MINUTE, "8h"),
            (47 * HOUR, "47h"),
            (48 * HOUR, "2d"),
            (50 * HOUR, "2d2h"),
            (8 * DAY, "8d"),
            (729 * DAY, "729d"),
            (730 * DAY, "2y"),
            (735 * DAY, "2y5d"),
            (8 * 365 * DAY + DAY, "8y"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn unset_is_unknown() {
        assert_eq!(since("", Timestamp::UNIX_EPOCH), "<unknown>");
    }
}
