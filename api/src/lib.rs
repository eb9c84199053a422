//! The Kubernetes object model as all components see it: schema data, quantities, selectors, validation. No I/O.

pub mod config;

pub use k8s_openapi;
