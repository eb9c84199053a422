//! So many places, so many for each address, and who goes when there is none left.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Once};

use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

/// How many places there are.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// For one address.
    pub each: usize,
    /// For all together: much more than for one.
    pub all: usize,
}

/// When the oldest connection of a share makes room for a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Yield {
    /// Whenever there is no room: what is new counts for more.
    Always,
    /// When the new one is of an address that has fewer.
    ToSmaller,
}

/// Whose connections count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Those of one address: for clients that have a /64 of IPv6 in common, as a node's pods.
    Address,
    /// Those of one machine, which may take any address of its /64 of IPv6.
    Machine,
}

/// Places for connections, shared among the addresses that they come from.
#[derive(Debug)]
pub struct Room {
    what: &'static str,
    bounds: Bounds,
    share: Share,
    yields: Yield,
    state: Mutex<State>,
    told: Once,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    next: u64,
    /// By address the places that it has, the oldest first; who sits there hears when one is taken away.
    shares: HashMap<IpAddr, BTreeMap<u64, DropGuard>>,
}

/// A place, for as long as it is held.
#[derive(Debug)]
pub struct Place {
    room: Arc<Room>,
    from: IpAddr,
    number: u64,
    taken_away: CancellationToken,
}

/// What a newcomer finds.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    Free,
    /// The oldest of its own address goes.
    Own,
    /// The oldest of the address that has most goes.
    Largest,
    Full,
}

impl Room {
    /// Places for `what`, as a log calls them.
    pub fn new(what: &'static str, bounds: Bounds, share: Share, yields: Yield) -> Self {
        Self {
            what,
            bounds,
            share,
            yields,
            state: Mutex::default(),
            told: Once::new(),
        }
    }

    /// A place for a connection from there, unless there is none.
    pub fn enter(room: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let from = room.share.of(from);
        let mut state = room.state.lock();
        let own = state.shares.get(&from).map_or(0, BTreeMap::len);
        let largest = || state.largest().map_or(0, |(_, len)| len);
        let finding = find(own, state.taken, largest, room.bounds, room.yields);
        if finding != Finding::Free {
            room.tell(from);
        }
        match finding {
            Finding::Free => {}
            Finding::Full => return None,
            Finding::Own => state.take_oldest(from),
            Finding::Largest => {
                let (largest, _) = state.largest()?;
                state.take_oldest(largest);
            }
        }
        let (number, taken_away) = state.seat(from);
        Some(Place {
            room: Arc::clone(room),
            from,
            number,
            taken_away,
        })
    }

    fn tell(&self, from: IpAddr) {
        self.told.call_once(|| {
            let Bounds { each, all } = self.bounds;
            tracing::warn!(
                %from,
                "no room for more {}: {each} of one address and {all} of all may be open, further ones are closed (this is told once)",
                self.what
            );
        });
    }
}

impl State {
    fn largest(&self) -> Option<(IpAddr, usize)> {
        let sizes = self.shares.iter().map(|(from, places)| (*from, places.len()));
        sizes.max_by_key(|(_, len)| *len)
    }

    fn seat(&mut self, from: IpAddr) -> (u64, CancellationToken) {
        let taken_away = CancellationToken::new();
        let number = self.next;
        self.next += 1;
        self.taken += 1;
        self.shares
            .entry(from)
            .or_default()
            .insert(number, taken_away.clone().drop_guard());
        (number, taken_away)
    }

    fn take_oldest(&mut self, from: IpAddr) {
        let oldest = self.shares.get(&from).and_then(|places| places.keys().next().copied());
        if let Some(number) = oldest {
            self.leave(from, number);
        }
    }

    /// Gives a place back; it may have been taken away before.
    fn leave(&mut self, from: IpAddr, number: u64) {
        let Some(places) = self.shares.get_mut(&from) else {
            return;
        };
        self.taken -= usize::from(places.remove(&number).is_some());
        if places.is_empty() {
            self.shares.remove(&from);
        }
    }
}

impl Place {
    /// Waits until the place is somebody else's.
    pub async fn lost(&self) {
        self.taken_away.cancelled().await;
    }

    /// The same, for one who does not hold the place.
    pub(super) fn told(&self) -> WaitForCancellationFutureOwned {
        self.taken_away.clone().cancelled_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.state.lock().leave(self.from, self.number);
    }
}

/// What a newcomer finds whose address has `own` places of the `taken` ones.
fn find(own: usize, taken: usize, largest: impl Fn() -> usize, bounds: Bounds, yields: Yield) -> Finding {
    if own >= bounds.each {
        return match yields {
            Yield::Always => Finding::Own,
            Yield::ToSmaller => Finding::Full,
        };
    }
    if taken < bounds.all {
        return Finding::Free;
    }
    match yields {
        Yield::ToSmaller if own + 1 >= largest() => Finding::Full,
        _ => Finding::Largest,
    }
}

impl Share {
    /// What an address counts for.
    fn of(self, from: IpAddr) -> IpAddr {
        match (self, from.to_canonical()) {
            (Self::Machine, IpAddr::V6(address)) => {
                Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
            }
            (_, address) => address,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { each: 3, all: 5 };

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn who_finds_what() {
        for (own, taken, largest, always, to_smaller) in [
            (0, 0, 0, Finding::Free, Finding::Free),
            (2, 4, 2, Finding::Free, Finding::Free),
            (3, 3, 3, Finding::Own, Finding::Full),
            (3, 5, 3, Finding::Own, Finding::Full),
            (0, 5, 3, Finding::Largest, Finding::Largest),
            (1, 5, 3, Finding::Largest, Finding::Largest),
            // Nobody goes for one that would then have as many.
            (2, 5, 3, Finding::Largest, Finding::Full),
            (0, 5, 1, Finding::Largest, Finding::Full),
        ] {
            let found = |yields| find(own, taken, || largest, BOUNDS, yields);
            assert_eq!(found(Yield::Always), always, "{own} of {taken}");
            assert_eq!(found(Yield::ToSmaller), to_smaller, "{own} of {taken}");
        }
    }

    #[test]
    fn one_address_keeps_no_other_out() {
        let room = Arc::new(Room::new("connections", BOUNDS, Share::Machine, Yield::ToSmaller));
        let enter = |last| Room::enter(&room, address(last));
        let mut greedy: Vec<_> = (0..3).map(|_| enter(1).expect("room")).collect();
        assert!(enter(1).is_none(), "an address has so much");
        let two = (enter(2).expect("room"), enter(3).expect("room"));
        let newcomer = enter(4).expect("the one that has most makes room");
        let gone: Vec<_> = greedy.iter().map(|place| place.taken_away.is_cancelled()).collect();
        assert_eq!(gone, [true, false, false], "the oldest of the one that has most");
        greedy.remove(0);
        assert!(enter(2).is_none(), "those that have most have two each");
        drop((two, newcomer, greedy));
        assert!(room.state.lock().shares.is_empty() && room.state.lock().taken == 0);
    }

    #[tokio::test]
    async fn the_newest_handshake_counts_for_most() {
        let room = Arc::new(Room::new("handshakes", BOUNDS, Share::Machine, Yield::Always));
        let places: Vec<_> = (0..9).map(|_| Room::enter(&room, address(1)).expect("room")).collect();
        for place in &places[..6] {
            place.lost().await;
        }
        assert_eq!(room.state.lock().taken, 3);
        assert!(!places[6].taken_away.is_cancelled());
    }

    #[test]
    fn whose_addresses_count_together() {
        for (one, other, same_address, same_machine) in [
            ("2001:db8::1", "2001:db8::1", true, true),
            ("2001:db8::1", "2001:db8::ffff:1", false, true),
            ("2001:db8::1", "2001:db8:0:1::1", false, false),
            ("::ffff:10.0.0.1", "10.0.0.1", true, true),
            ("10.0.0.1", "10.0.0.2", false, false),
        ] {
            let same = |share: Share| {
                let of = |text: &str| share.of(text.parse().expect("an address"));
                of(one) == of(other)
            };
            let found = (same(Share::Address), same(Share::Machine));
            assert_eq!(found, (same_address, same_machine), "{one} and {other}");
        }
    }
}
