//! How `up` and `down` tell what they are doing; the caller draws it.

/// Told about each step.
pub trait Progress: Send + Sync {
    /// A step has begun.
    fn step(&self, what: &str);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _what: &str) {}
}
