//! One look at a node: what its kubelet says at `/metrics/resource`.

use std::collections::HashMap;

/// CPU time and memory at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// CPU seconds since the start.
    pub(super) cpu: f64,
    /// Bytes.
    pub(super) working_set: f64,
    /// Seconds since 1970 at which it was measured.
    pub(super) at: f64,
    /// Seconds since 1970 at which it started; zero when it is not told.
    pub(super) started: f64,
}

/// Namespace, pod, container.
pub(super) type Key = (String, String, String);

/// What one kubelet has told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Scrape {
    pub(super) node: Sample,
    pub(super) containers: HashMap<Key, Sample>,
}

/// Reads Prometheus' text format; lines that are not of interest, or not understood, are passed over.
pub(super) fn parse(text: &str) -> Scrape {
    let mut scrape = Scrape::default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some(line) = Line::parse(line) else { continue };
        match line.name {
            "node_cpu_usage_seconds_total" => {
                scrape.node.cpu = line.value;
                scrape.node.at = line.at;
            }
            "node_memory_working_set_bytes" => scrape.node.working_set = line.value,
            "container_cpu_usage_seconds_total"
            | "container_memory_working_set_bytes"
            | "container_start_time_seconds" => {
                let label = |name: &str| line.labels.get(name).cloned().unwrap_or_default();
                let key = (label("namespace"), label("pod"), label("container"));
                let sample = scrape.containers.entry(key).or_default();
                match line.name {
                    "container_cpu_usage_seconds_total" => (sample.cpu, sample.at) = (line.value, line.at),
                    "container_memory_working_set_bytes" => sample.working_set = line.value,
                    _ => sample.started = line.value,
                }
            }
            _ => {}
        }
    }
    // What only has a start time does not run.
    scrape.containers.retain(|_, sample| sample.at > 0.0);
    scrape
}

struct Line<'a> {
    name: &'a str,
    labels: HashMap<&'a str, String>,
    value: f64,
    at: f64,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let end = line.find(['{', ' '])?;
        let (name, mut rest) = line.split_at(end);
        let mut labels = HashMap::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            while !rest.starts_with('}') {
                let (key, after) = rest.split_once("=\"")?;
                let (value, after) = quoted(after)?;
                labels.insert(key.trim_start_matches([',', ' ']), value);
                rest = after;
            }
            rest = &rest[1..];
        }
        let mut numbers = rest.split_whitespace();
        let value = numbers.next()?.parse().ok()?;
        let at = numbers.next().and_then(|millis| millis.parse::<f64>().ok());
        Some(Self {
            name,
            labels,
            value,
            at: at.unwrap_or(0.0) / 1000.0,
        })
    }
}

/// A label's value up to its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kubelet_writes() {
        let scrape = parse(
            "# HELP node_cpu_usage_seconds_total x\n\
             node_cpu_usage_seconds_total 12.5 10000\n\
             node_memory_working_set_bytes 2048 10000\n\
             container_cpu_usage_seconds_total{container=\"c\",namespace=\"ns\",pod=\"a\\\"b\"} 1.5 9000\n\
             container_memory_working_set_bytes{container=\"c\",namespace=\"ns\",pod=\"a\\\"b\"} 1e3 9000\n\
             container_start_time_seconds{container=\"c\",namespace=\"ns\",pod=\"a\\\"b\"} 5\n\
             container_start_time_seconds{container=\"gone\",namespace=\"ns\",pod=\"p\"} 5\n\
             broken{x=\"\nother 1\n",
        );
        assert_eq!(
            (scrape.node.cpu, scrape.node.working_set, scrape.node.at),
            (12.5, 2048.0, 10.0)
        );
        assert_eq!(scrape.containers.len(), 1);
        let sample = scrape.containers[&("ns".into(), "a\"b".into(), "c".into())];
        assert_eq!(
            (sample.cpu, sample.working_set, sample.at, sample.started),
            (1.5, 1000.0, 9.0, 5.0)
        );
    }
}
