//! Whole pods on the fake runtime and a scripted API: the kubelet from its sources to its patches.

mod admission;
mod api;
mod asked;
mod events;
mod given;
mod hooks;
mod kills;
mod kubelet;
mod lives;
mod node;
mod objects;
mod outage;
mod scene;
mod server;
mod settings;
mod statics;
mod volumes;
