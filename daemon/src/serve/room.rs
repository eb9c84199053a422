//! So many places, so many for each address, and who goes when there is none left: of the machine that has most, the address that has most.
//! A machine of IPv6 may take any address of its /64, so that counts as one machine; where a node's pods have one in common, one of them
//! keeps no other out all the same.

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

/// Places for connections, shared among the addresses that they come from.
#[derive(Debug)]
pub struct Room {
    what: &'static str,
    bounds: Bounds,
    yields: Yield,
    state: Mutex<State>,
    told: Once,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    next: u64,
    machines: HashMap<IpAddr, Machine>,
}

#[derive(Debug, Default)]
struct Machine {
    taken: usize,
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
    /// The oldest of this address goes.
    Taken(IpAddr),
    Full,
}

impl Room {
    /// Places for `what`, as a log calls them.
    pub fn new(what: &'static str, bounds: Bounds, yields: Yield) -> Self {
        Self {
            what,
            bounds,
            yields,
            state: Mutex::default(),
            told: Once::new(),
        }
    }

    /// A place for a connection from there, unless there is none.
    pub fn enter(room: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let from = from.to_canonical();
        let mut state = room.state.lock();
        let finding = state.find(from, room.bounds, room.yields);
        if finding != Finding::Free {
            room.tell(from);
        }
        match finding {
            Finding::Free => {}
            Finding::Taken(other) => state.take_oldest(other),
            Finding::Full => return None,
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
    fn find(&self, from: IpAddr, bounds: Bounds, yields: Yield) -> Finding {
        let home = self.machines.get(&machine(from));
        let own = home.and_then(|home| home.shares.get(&from)).map_or(0, BTreeMap::len);
        if own >= bounds.each {
            return match yields {
                Yield::Always => Finding::Taken(from),
                Yield::ToSmaller => Finding::Full,
            };
        }
        if self.taken < bounds.all {
            return Finding::Free;
        }
        // Nobody goes for one that would then have as many.
        let homes = home.map_or(0, |home| home.taken);
        let most = (self.machines.values().max_by_key(|other| other.taken))
            .filter(|other| yields == Yield::Always || homes + 1 < other.taken)
            .and_then(Machine::largest);
        let neighbour = || home?.largest().filter(|(_, len)| own + 1 < *len);
        most.or_else(neighbour)
            .map_or(Finding::Full, |(address, _)| Finding::Taken(address))
    }

    fn seat(&mut self, from: IpAddr) -> (u64, CancellationToken) {
        let taken_away = CancellationToken::new();
        let number = self.next;
        self.next += 1;
        self.taken += 1;
        let home = self.machines.entry(machine(from)).or_default();
        home.taken += 1;
        home.shares
            .entry(from)
            .or_default()
            .insert(number, taken_away.clone().drop_guard());
        (number, taken_away)
    }

    fn take_oldest(&mut self, from: IpAddr) {
        let share = self
            .machines
            .get(&machine(from))
            .and_then(|home| home.shares.get(&from));
        if let Some(number) = share.and_then(|places| places.keys().next().copied()) {
            self.leave(from, number);
        }
    }

    /// Gives a place back; it may have been taken away before.
    fn leave(&mut self, from: IpAddr, number: u64) {
        let Some(home) = self.machines.get_mut(&machine(from)) else {
            return;
        };
        if home.leave(from, number) {
            self.taken -= 1;
        }
        if home.taken == 0 {
            self.machines.remove(&machine(from));
        }
    }
}

impl Machine {
    fn largest(&self) -> Option<(IpAddr, usize)> {
        let sizes = self.shares.iter().map(|(from, places)| (*from, places.len()));
        sizes.max_by_key(|(_, len)| *len)
    }

    fn leave(&mut self, from: IpAddr, number: u64) -> bool {
        let Some(places) = self.shares.get_mut(&from) else {
            return false;
        };
        let was_there = places.remove(&number).is_some();
        if places.is_empty() {
            self.shares.remove(&from);
        }
        self.taken -= usize::from(was_there);
        was_there
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

/// Which machine an address is one of.
fn machine(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
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
        let took = |from: &str| Finding::Taken(from.parse().unwrap());
        let (one, two, three) = ("10.0.0.1", "10.0.0.2", "10.0.0.3");
        // Two of one machine, and one of another.
        let (pod, neighbour, far) = ("fd00::1", "fd00::2", "fd00:0:0:1::1");
        for (places, from, always, to_smaller) in [
            (&[][..], one, Finding::Free, Finding::Free),
            (&[(one, 2), (two, 2)], one, Finding::Free, Finding::Free),
            (&[(one, 3)], one, took(one), Finding::Full),
            (&[(one, 3), (two, 2)], one, took(one), Finding::Full),
            (&[(one, 3), (two, 2)], three, took(one), took(one)),
            (&[(one, 3), (two, 1), (three, 1)], three, took(one), took(one)),
            // Nobody goes for one that would then have as many.
            (&[(one, 3), (two, 2)], two, took(one), Finding::Full),
            // However many addresses a machine has, it makes room for another one.
            (&[(pod, 3), (neighbour, 2)], far, took(pod), took(pod)),
            (
                &[("fd00::3", 1), (pod, 2), (neighbour, 1), (far, 1)],
                far,
                took(pod),
                took(pod),
            ),
            // And a pod for its neighbour.
            (&[(pod, 3), (neighbour, 1), (far, 1)], neighbour, took(pod), took(pod)),
            (&[(pod, 3), (far, 2)], neighbour, took(pod), took(pod)),
            (&[(pod, 3), (far, 2)], far, took(pod), Finding::Full),
        ] {
            let mut state = State::default();
            for (from, count) in places {
                (0..*count).for_each(|_| drop(state.seat(from.parse().unwrap())));
            }
            let found = |yields| state.find(from.parse().unwrap(), BOUNDS, yields);
            assert_eq!(found(Yield::Always), always, "{from} where {places:?}");
            assert_eq!(found(Yield::ToSmaller), to_smaller, "{from} where {places:?}");
        }
    }

    #[test]
    fn one_address_keeps_no_other_out() {
        let room = Arc::new(Room::new("connections", BOUNDS, Yield::ToSmaller));
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
        assert!(room.state.lock().machines.is_empty() && room.state.lock().taken == 0);
    }

    #[tokio::test]
    async fn the_newest_handshake_counts_for_most() {
        let room = Arc::new(Room::new("handshakes", BOUNDS, Yield::Always));
        let places: Vec<_> = (0..9).map(|_| Room::enter(&room, address(1)).expect("room")).collect();
        for place in &places[..6] {
            place.lost().await;
        }
        assert_eq!(room.state.lock().taken, 3);
        assert!(!places[6].taken_away.is_cancelled());
    }

    #[test]
    fn an_address_is_the_same_in_both_families() {
        let room = Arc::new(Room::new("connections", BOUNDS, Yield::ToSmaller));
        let enter = |from: &str| Room::enter(&room, from.parse().unwrap());
        let _places: Vec<_> = (0..3).map(|_| enter("::ffff:10.0.0.1").expect("room")).collect();
        assert!(enter("10.0.0.1").is_none());
    }
}
