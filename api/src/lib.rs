//! The Kubernetes object model as all components see it: schema data, quantities, selectors, validation. No I/O.
//!
//! Two views of an object live here. The API server works on `serde_json::Value` guided by [`schema`], so that nothing a
//! client sent is lost; everything else (controllers, scheduler, kubelet) works on typed [`k8s_openapi`] structs, for
//! which [`owners`], [`pods`] and [`volumes`] hold what several of them need.

pub use k8s_openapi;

pub mod bootstrap_tokens;
pub mod config;
pub mod decode;
pub mod defaults;
pub mod duration;
pub mod field;
pub mod meta;
pub mod names;
pub mod nodes;
pub mod owners;
pub mod patch;
pub mod pods;
pub mod protobuf;
pub mod quantity;
pub mod resource;
pub mod schema;
pub mod selector;
pub mod status;
pub mod validation;
pub mod volumes;
