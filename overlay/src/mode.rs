//! How packets get to other nodes' pods, as an operator says it.

use std::fmt;
use std::str::FromStr;

/// How packets get to other nodes' pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Directly to nodes on a segment of this one, by VXLAN to the others.
    #[default]
    Auto,
    /// Directly: all nodes are on one segment, or routers know the pods' ranges.
    Direct,
    /// By VXLAN to every node.
    Vxlan,
    /// Another CNI does it: nothing is set up, and what was is removed.
    None,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Direct, Self::Vxlan, Self::None];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Direct => "direct",
            Self::Vxlan => "vxlan",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A text that names no mode.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no network mode: auto, direct, vxlan and none are known")]
pub struct ModeError(String);

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Self, ModeError> {
        let found = Self::ALL.into_iter().find(|mode| mode.name() == text);
        found.ok_or_else(|| ModeError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_by_their_names() {
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse::<Mode>().unwrap(), mode);
        }
        assert!("VXLAN".parse::<Mode>().is_err());
    }
}
