//! What the kubelet tells of its certificates, under upstream's names: looked up when somebody asks.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

use super::store::Store;
use super::{CLIENT, SERVER};

/// Failed renewals of the client certificate; of the process, since the first may come before anything is measured.
static RENEW_ERRORS: AtomicU64 = AtomicU64::new(0);
/// The same of the serving certificate.
static SERVING_ERRORS: AtomicU64 = AtomicU64::new(0);

/// Counts a failed renewal of the client certificate.
pub(super) fn renew_failed() {
    RENEW_ERRORS.fetch_add(1, Ordering::Relaxed);
}

/// Counts a failed renewal of the serving certificate.
pub(super) fn serving_failed() {
    SERVING_ERRORS.fetch_add(1, Ordering::Relaxed);
}

/// The certificates in a directory.
#[derive(Debug)]
pub(crate) struct Figures {
    /// Where they are kept.
    pub(crate) directory: PathBuf,
}

impl Figures {
    /// Seconds until a certificate ends, less than none when it has; infinite where there is none.
    fn left(&self, name: &'static str) -> f64 {
        let kept = Store::new(&self.directory, name).load().ok().flatten();
        let validity = kept.and_then(|kept| kept.identity.validity().ok());
        validity.map_or(f64::INFINITY, |validity| {
            validity.not_after.duration_since(Timestamp::now()).as_secs_f64()
        })
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let count = |errors: &AtomicU64| f64::from(u32::try_from(errors.load(Ordering::Relaxed)).unwrap_or(u32::MAX));
        let figures = [
            (
                "kubelet_certificate_manager_client_ttl_seconds",
                "Seconds until the kubelet's client certificate ends; infinite where it has none of its own",
                self.left(CLIENT),
            ),
            (
                "kubelet_certificate_manager_server_ttl_seconds",
                "Seconds until the kubelet's serving certificate ends; infinite where it has none that is signed for it",
                self.left(SERVER),
            ),
            // Upstream's counter has no `_total` in its name, which this library gives to every counter.
            (
                "kubelet_certificate_manager_client_expiration_renew_errors",
                "Failed renewals of the client certificate",
                count(&RENEW_ERRORS),
            ),
            (
                "kubelet_server_expiration_renew_errors",
                "Failed renewals of the serving certificate",
                count(&SERVING_ERRORS),
            ),
        ];
        for (name, help, value) in figures {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use skiff_daemon::Metrics;
    use skiff_pki::{CertificateAuthority, Request};

    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::default();
        let directory = dir.path().to_owned();
        metrics.register(|registry| registry.register_collector(Box::new(Figures { directory })));
        let value = |name: &str| -> f64 {
            let text = metrics.encode();
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_default();
            line.trim().parse().unwrap_or(f64::NAN)
        };
        let (client, server) = (
            "kubelet_certificate_manager_client_ttl_seconds ",
            "kubelet_certificate_manager_server_ttl_seconds ",
        );
        assert!(
            value(client).is_infinite() && value(server).is_infinite(),
            "{}",
            metrics.encode()
        );
        let authority = CertificateAuthority::generate("kubernetes").unwrap();
        let request = Request::client("system:node:n", &[]).lifetime(Duration::from_secs(1000));
        Store::new(dir.path(), CLIENT)
            .keep(&authority.issue(&request).unwrap())
            .unwrap();
        assert!((900.0..=1000.0).contains(&value(client)), "{}", metrics.encode());
        assert!(value(server).is_infinite());
    }
}
