//! What every long-running process shares: logging, metrics, health endpoints, shutdown, sd_notify.
