//! The server over HTTPS on loopback, with a real SQLite store, spoken to by the real kubectl.

mod cluster;
mod kinds;
mod kubectl;
