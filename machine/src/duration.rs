//! Durations as people and Go write them: `24h`, `1h0m0s`, `0`.

use std::time::Duration;

use jiff::SignedDuration;

/// Reads a duration; `0` needs no unit.
///
/// # Errors
/// What is wrong with it, with an example.
pub fn parse(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let parsed = text.parse::<SignedDuration>().ok();
    parsed
        .and_then(|duration| Duration::try_from(duration).ok())
        .ok_or_else(|| format!("{text:?} is not a duration such as 24h, 1h30m or 0"))
}

/// A duration for people, in its largest unit: `364d`, `23h`, `59m`.
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_and_shown() {
        for (text, seconds, shown) in [
            ("24h", 86_400, "24h"),
            ("1h0m0s", 3600, "1h"),
            ("90s", 90, "1m"),
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("8760h", 31_536_000, "365d"),
        ] {
            let parsed = parse(text).unwrap();
            assert_eq!((parsed.as_secs(), short(parsed).as_str()), (seconds, shown), "{text}");
        }
        for text in ["", "-1h", "soon", "24"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
