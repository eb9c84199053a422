//! Answers of other servers, kept for as long as they say, and no longer than configured. Bounded in number and in bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, RecordType};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::answer::Answer;

/// Upstream's: answers, and denials, kept at most.
const CAPACITY: usize = 9_984;
/// What all of one kind may take, as they were on the wire.
const MAX_BYTES: usize = 8 << 20;
/// Upstream's: a server that failed is not asked the same for so long.
const FAILURE: Duration = Duration::from_secs(5);

/// What answers are found by.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Key {
    pub(crate) name: Name,
    pub(crate) kind: RecordType,
    pub(crate) dnssec_ok: bool,
    pub(crate) checking_disabled: bool,
}

/// Whether an answer says that there is something.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Says {
    Success,
    Denial,
}

#[derive(Debug)]
struct Entry {
    answer: Arc<Answer>,
    stored: Instant,
    expires: Instant,
    number: u64,
    size: usize,
}

#[derive(Debug, Default)]
struct Shelf {
    entries: HashMap<Key, Entry>,
    /// In the order in which they expire: the next to go is the first.
    order: BTreeMap<(Instant, u64), Key>,
    bytes: usize,
    number: u64,
    evictions: u64,
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Cache {
    longest: Duration,
    success: Mutex<Shelf>,
    denial: Mutex<Shelf>,
}

// === impl Says ===

impl Says {
    /// Upstream's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Denial => "denial",
        }
    }
}

// === impl Cache ===

impl Cache {
    /// A cache that keeps nothing for longer than `longest`.
    pub(crate) fn new(longest: Duration) -> Self {
        Self {
            longest,
            success: Mutex::default(),
            denial: Mutex::default(),
        }
    }

    /// What is known, with the time to live that is left.
    pub(crate) fn get(&self, key: &Key) -> Option<(Says, Answer)> {
        let now = Instant::now();
        [Says::Success, Says::Denial].into_iter().find_map(|says| {
            let (answer, age, left) = self.shelf(says).lock().get(key, now)?;
            Some((says, aged(&answer, age, left)))
        })
    }

    /// Keeps an answer that took `size` bytes, when it may be kept. Returns how many it pushed out.
    pub(crate) fn insert(&self, key: Key, answer: &Answer, size: usize) -> (Says, u64) {
        let (says, ttl) = lifetime(answer);
        let ttl = ttl.min(self.longest);
        if ttl.is_zero() {
            return (says, 0);
        }
        let now = Instant::now();
        let other = if says == Says::Success {
            Says::Denial
        } else {
            Says::Success
        };
        self.shelf(other).lock().remove(&key);
        let mut shelf = self.shelf(says).lock();
        let before = shelf.evictions;
        shelf.insert(key, Arc::new(answer.clone()), now, ttl, size);
        (says, shelf.evictions - before)
    }

    /// How many are kept.
    pub(crate) fn len(&self, says: Says) -> usize {
        self.shelf(says).lock().entries.len()
    }

    fn shelf(&self, says: Says) -> &Mutex<Shelf> {
        match says {
            Says::Success => &self.success,
            Says::Denial => &self.denial,
        }
    }
}

// === impl Shelf ===

impl Shelf {
    fn get(&mut self, key: &Key, now: Instant) -> Option<(Arc<Answer>, Duration, Duration)> {
        let entry = self.entries.get(key)?;
        if entry.expires <= now {
            self.remove(key);
            return None;
        }
        Some((Arc::clone(&entry.answer), now - entry.stored, entry.expires - now))
    }

    fn insert(&mut self, key: Key, answer: Arc<Answer>, now: Instant, ttl: Duration, size: usize) {
        self.remove(&key);
        while self.entries.len() >= CAPACITY || self.bytes + size > MAX_BYTES {
            let Some((&(expires, _), victim)) = self.order.first_key_value() else {
                break;
            };
            self.evictions += u64::from(expires > now);
            let victim = victim.clone();
            self.remove(&victim);
        }
        self.number += 1;
        let entry = Entry {
            answer,
            stored: now,
            expires: now + ttl,
            number: self.number,
            size,
        };
        self.order.insert((entry.expires, entry.number), key.clone());
        self.bytes += size;
        self.entries.insert(key, entry);
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&(entry.expires, entry.number));
            self.bytes -= entry.size;
        }
    }
}

/// Whether it is a denial, and how long the answer may be kept (RFC 2308): nothing for what must not be.
fn lifetime(answer: &Answer) -> (Says, Duration) {
    let seconds = |ttl: Option<u32>| Duration::from_secs(ttl.unwrap_or(0).into());
    let answers = answer.answers.iter().map(|record| record.ttl).min();
    let denial = answer.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    });
    let shorter = answers.into_iter().chain(denial).min();
    match answer.code {
        _ if answer.cut => (Says::Denial, Duration::ZERO),
        ResponseCode::NoError if answers.is_some() => (Says::Success, seconds(shorter)),
        ResponseCode::NoError | ResponseCode::NXDomain if denial.is_some() => (Says::Denial, seconds(shorter)),
        ResponseCode::ServFail => (Says::Denial, FAILURE),
        _ => (Says::Denial, Duration::ZERO),
    }
}

fn aged(answer: &Answer, age: Duration, left: Duration) -> Answer {
    let mut answer = answer.clone();
    let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
    let left = u32::try_from(left.as_secs()).unwrap_or(u32::MAX);
    let records = answer.answers.iter_mut().chain(&mut answer.authorities);
    for record in records.chain(&mut answer.additionals) {
        record.ttl = record.ttl.saturating_sub(age).min(left);
    }
    answer
}

#[cfg(test)]
mod tests;
