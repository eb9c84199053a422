//! Prometheus' text format 0.0.4, for the figures of others: these carry the time at which they were taken.

use std::fmt::Write as _;

use jiff::Timestamp;

/// The content type of the text.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A text being written, one family after another.
#[derive(Debug, Default)]
pub(crate) struct Text {
    out: String,
}

impl Text {
    /// Begins a family; `kind` is `counter` or `gauge`.
    pub(crate) fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a string does not fail.
        writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
    }

    /// One line of the family.
    pub(crate) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64, at: Option<Timestamp>) {
        self.out.push_str(name);
        for (index, (key, value)) in labels.iter().enumerate() {
            self.out.push(if index == 0 { '{' } else { ',' });
            self.out.push_str(key);
            self.out.push_str("=\"");
            escape(&mut self.out, value);
            self.out.push('"');
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        write!(self.out, " {value}").ok();
        if let Some(at) = at {
            write!(self.out, " {}", at.as_millisecond()).ok();
        }
        self.out.push('\n');
    }

    pub(crate) fn finish(self) -> String {
        self.out
    }
}

fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

/// A count as the format's only type of number. Above 2^53 the last digits are lost, as everywhere in Prometheus.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn float(value: u64) -> f64 {
    value as f64
}

/// Nanoseconds as seconds.
pub(crate) fn seconds(nanoseconds: u64) -> f64 {
    float(nanoseconds) / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let mut text = Text::default();
        text.family("a_total", "counter", "Help");
        let at = Timestamp::from_millisecond(1500).unwrap();
        text.sample(
            "a_total",
            &[("x", "1\"\\\n"), ("y", "")],
            seconds(1_500_000_000),
            Some(at),
        );
        text.sample("b", &[], float(3), None);
        assert_eq!(
            text.finish(),
            "# HELP a_total Help\n# TYPE a_total counter\na_total{x=\"1\\\"\\\\\\n\",y=\"\"} 1.5 1500\nb 3\n"
        );
    }
}
