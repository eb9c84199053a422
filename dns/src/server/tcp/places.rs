//! How many connections there may be, in all and of one client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// All places; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Places {
    taken: Arc<Mutex<Taken>>,
    most: usize,
    most_of_client: usize,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// One connection's place; it is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    client: IpAddr,
}

impl Places {
    pub(super) fn new(most: usize, most_of_client: usize) -> Self {
        Self {
            taken: Arc::default(),
            most,
            most_of_client,
        }
    }

    /// A place for a client, if there is one left for it.
    pub(super) fn take(&self, client: IpAddr) -> Option<Place> {
        let mut taken = self.taken.lock();
        let of_client = taken.by_client.get(&client).copied().unwrap_or_default();
        if taken.all >= self.most || of_client >= self.most_of_client {
            return None;
        }
        taken.all += 1;
        taken.by_client.insert(client, of_client + 1);
        Some(Place {
            places: self.clone(),
            client,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.all -= 1;
        if let Some(count) = taken.by_client.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                taken.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_its_share_and_no_more() {
        let places = Places::new(5, 2);
        let client = |last: u8| IpAddr::from([10, 244, 0, last]);
        let mut held: Vec<_> = [1, 1, 2, 2].map(|last| places.take(client(last)).unwrap()).into();
        assert!(places.take(client(1)).is_none(), "it has its share");
        held.push(places.take(client(3)).unwrap());
        assert!(places.take(client(4)).is_none(), "all are taken");
        held.remove(0);
        assert!(places.take(client(1)).is_some(), "free again");
        held.clear();
        let taken = places.taken.lock();
        assert!(taken.all == 0 && taken.by_client.is_empty(), "{taken:?}");
    }
}
