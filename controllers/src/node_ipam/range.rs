//! A range of addresses cut into equal parts, some of them taken.

use std::net::IpAddr;

use ipnet::IpNet;

pub(super) struct Range {
    cidr: IpNet,
    mask: u8,
    taken: Vec<bool>,
    /// Where the search goes on: a part just freed is used again last.
    next: usize,
}

impl Range {
    /// The configuration was validated: the mask cuts the range into at most 65,536 parts.
    pub(super) fn new(cidr: IpNet, mask: u8) -> Self {
        let parts = 1_usize << mask.saturating_sub(cidr.prefix_len()).min(16);
        Self {
            cidr: cidr.trunc(),
            mask,
            taken: vec![false; parts],
            next: 0,
        }
    }

    /// Never gives out what overlaps `other`.
    pub(super) fn exclude(&mut self, other: &IpNet) {
        for at in 0..self.taken.len() {
            let part = self.part(at);
            if part.contains(&other.network()) || other.contains(&part.network()) {
                self.taken[at] = true;
            }
        }
    }

    /// Whether the part is of this range and was free.
    pub(super) fn occupy(&mut self, cidr: &IpNet) -> bool {
        match self.position(cidr) {
            Some(at) if !self.taken[at] => {
                self.taken[at] = true;
                true
            }
            _ => false,
        }
    }

    pub(super) fn free(&mut self, cidr: &IpNet) {
        if let Some(at) = self.position(cidr) {
            self.taken[at] = false;
        }
    }

    pub(super) fn take(&mut self) -> Option<IpNet> {
        let parts = self.taken.len();
        let at = (0..parts)
            .map(|step| (self.next + step) % parts)
            .find(|at| !self.taken[*at])?;
        self.taken[at] = true;
        self.next = (at + 1) % parts;
        Some(self.part(at))
    }

    fn part(&self, at: usize) -> IpNet {
        let offset = (at as u128) << (self.cidr.max_prefix_len() - self.mask);
        let address = match self.cidr.network() {
            IpAddr::V4(base) => {
                let offset = u32::try_from(offset).expect("a part of a validated range lies within it");
                IpAddr::V4((u32::from(base) + offset).into())
            }
            IpAddr::V6(base) => IpAddr::V6((u128::from(base) + offset).into()),
        };
        IpNet::new(address, self.mask).expect("the mask was validated against the family")
    }

    fn position(&self, cidr: &IpNet) -> Option<usize> {
        if cidr.prefix_len() != self.mask || !self.cidr.contains(cidr) {
            return None;
        }
        let offset = match (cidr.network(), self.cidr.network()) {
            (IpAddr::V4(part), IpAddr::V4(base)) => u128::from(u32::from(part) - u32::from(base)),
            (IpAddr::V6(part), IpAddr::V6(base)) => u128::from(part) - u128::from(base),
            _ => return None,
        };
        usize::try_from(offset >> (self.cidr.max_prefix_len() - self.mask)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::Range;

    fn range(cidr: &str, mask: u8) -> Range {
        Range::new(cidr.parse().unwrap(), mask)
    }

    #[test]
    fn parts_come_in_turn_and_wrap() {
        let mut range = range("10.244.0.0/22", 24);
        let mut take = || range.take().map(|cidr| cidr.to_string());
        for expected in ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"] {
            assert_eq!(take().as_deref(), Some(expected));
        }
        assert_eq!(take(), None);
        range.free(&"10.244.1.0/24".parse().unwrap());
        assert_eq!(
            range.take().map(|cidr| cidr.to_string()).as_deref(),
            Some("10.244.1.0/24")
        );
    }

    #[test]
    fn foreign_and_excluded_parts_are_refused() {
        let mut range = range("10.244.0.0/22", 24);
        assert!(!range.occupy(&"10.250.0.0/24".parse().unwrap()));
        assert!(!range.occupy(&"10.244.0.0/25".parse().unwrap()));
        range.exclude(&"10.244.0.0/23".parse().unwrap());
        assert_eq!(
            range.take().map(|cidr| cidr.to_string()).as_deref(),
            Some("10.244.2.0/24")
        );
    }

    #[test]
    fn six_works_too() {
        let mut range = range("fd00:10::/56", 64);
        range.take();
        assert_eq!(
            range.take().map(|cidr| cidr.to_string()).as_deref(),
            Some("fd00:10:0:1::/64")
        );
    }
}
