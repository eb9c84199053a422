//! What the operating system says of this process, under the names that every Prometheus client library uses.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Clock ticks a second in `/proc`: 100 on every architecture of Linux that Rust knows.
const TICKS: f64 = 100.0;
/// Bytes of a page, where `/proc/self/statm` counts pages.
const PAGE: f64 = 4096.0;

/// `process_*`: read from `/proc/self` when somebody asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process;

/// What one look at `/proc` tells.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Figures {
    cpu_seconds: f64,
    start_seconds: f64,
    virtual_bytes: f64,
    resident_bytes: f64,
    open_files: f64,
    max_files: f64,
    threads: f64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let figures = read();
        let cpu = encoder.encode_descriptor(
            "process_cpu_seconds",
            "Total user and system CPU time spent in seconds",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(figures.cpu_seconds).encode(cpu)?;
        for (name, help, value) in [
            (
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds",
                figures.start_seconds,
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes",
                figures.virtual_bytes,
            ),
            (
                "process_resident_memory_bytes",
                "Resident memory size in bytes",
                figures.resident_bytes,
            ),
            (
                "process_open_fds",
                "Number of open file descriptors",
                figures.open_files,
            ),
            (
                "process_max_fds",
                "Maximum number of open file descriptors",
                figures.max_files,
            ),
            ("process_threads", "Number of threads", figures.threads),
        ] {
            let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(gauge)?;
        }
        Ok(())
    }
}

fn read() -> Figures {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut figures = parse(
        &text("/proc/self/stat"),
        &text("/proc/self/statm"),
        &text("/proc/self/limits"),
        &text("/proc/stat"),
    );
    let files = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    figures.open_files = f64::from(u32::try_from(files).unwrap_or(u32::MAX));
    figures
}

fn parse(stat: &str, statm: &str, limits: &str, machine: &str) -> Figures {
    // The second field is the name in brackets and may hold blanks.
    let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
    let field = |number: usize| -> f64 {
        let text = after.split_whitespace().nth(number - 3);
        text.and_then(|text| text.parse().ok()).unwrap_or(0.0)
    };
    let pages = |number: usize| -> f64 {
        let text = statm.split_whitespace().nth(number);
        text.and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0) * PAGE
    };
    let boot = machine.lines().find_map(|line| line.strip_prefix("btime "));
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    Figures {
        cpu_seconds: (field(14) + field(15)) / TICKS,
        threads: field(20),
        start_seconds: boot.and_then(|text| text.trim().parse::<f64>().ok()).unwrap_or(0.0) + field(22) / TICKS,
        virtual_bytes: pages(0),
        resident_bytes: pages(1),
        max_files: files
            .and_then(|text| text.split_whitespace().next()?.parse().ok())
            .unwrap_or(0.0),
        open_files: 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 0 0 0 0 0 150 50 0 0 20 0 9 0 1000 0 0";
        let limits = "Limit   Soft Limit  Hard Limit  Units\nMax open files            1024                 4096                 files\n";
        let figures = parse(stat, "10 5 1 1 0 1 0\n", limits, "cpu 1\nbtime 100\n");
        assert_eq!((figures.cpu_seconds, figures.threads), (2.0, 9.0));
        assert_eq!(figures.start_seconds, 110.0);
        assert_eq!((figures.virtual_bytes, figures.resident_bytes), (40960.0, 20480.0));
        assert_eq!(figures.max_files, 1024.0);
    }

    #[test]
    fn this_process_has_figures() {
        let metrics = crate::Metrics::default();
        metrics.register(|registry| registry.register_collector(Box::new(Process)));
        let text = metrics.encode();
        assert!(text.contains("process_cpu_seconds_total "), "{text}");
        let resident = text
            .lines()
            .find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
        assert!(resident.unwrap().parse::<f64>().unwrap() > 0.0, "{text}");
    }
}
