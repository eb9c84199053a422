//! From a packet to its answer: at once from memory, or later, when somebody else must be asked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use ipnet::IpNet;
use parking_lot::RwLock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::answer::{self, Answer, MAX_ALIASES, Zone};
use crate::cache::{Cache, Key};
use crate::forward::Forwarder;
use crate::index::Index;
use crate::message::{self, Read, Request, Transport};
use crate::metrics::Metrics;

/// Questions that wait for others' answers. One is a task and a kilobyte.
const MAX_WAITING: usize = 20_000;
const KUBERNETES: &str = "kubernetes";
const FORWARD: &str = "forward";
const CACHE: &str = "cache";

/// Answers questions.
#[derive(Debug)]
pub(crate) struct Resolver {
    pub(crate) index: RwLock<Index>,
    /// The index is complete: what it does not have does not exist.
    synced: AtomicBool,
    zone: Zone,
    cache: Arc<Cache>,
    forwarder: Arc<Forwarder>,
    pub(crate) metrics: Metrics,
    waiting: Arc<Semaphore>,
    /// Who may ask.
    clients: Vec<IpNet>,
}

/// What is done about a packet.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Nothing is sent back.
    Nothing,
    /// The answer.
    Answer(Vec<u8>),
    /// The answer comes from somebody else.
    Later(Box<Pending>),
}

/// A question that somebody else is asked.
#[derive(Debug)]
pub(crate) struct Pending {
    resolver: Arc<Resolver>,
    request: Request,
    /// What is known already: the aliases that led there.
    begun: Answer,
    query: Query,
    since: Instant,
    _permit: OwnedSemaphorePermit,
}

/// How far memory alone leads.
enum Step {
    Done {
        answer: Answer,
        authoritative: bool,
        plugin: &'static str,
    },
    Ask {
        begun: Answer,
        query: Query,
    },
}

// === impl Resolver ===

impl Resolver {
    pub(crate) fn new(
        zone: Zone,
        cache: Arc<Cache>,
        forwarder: Arc<Forwarder>,
        metrics: Metrics,
        clients: Vec<IpNet>,
    ) -> Self {
        Self {
            index: RwLock::default(),
            synced: AtomicBool::new(false),
            zone,
            cache,
            forwarder,
            metrics,
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            clients,
        }
    }

    /// From now on the index is complete. True the first time.
    pub(crate) fn set_synced(&self) -> bool {
        !self.synced.swap(true, Ordering::Release)
    }

    /// Whether the index has been complete.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire)
    }

    /// Answers a packet, or says who will.
    pub(crate) fn handle(self: &Arc<Self>, packet: &[u8], transport: Transport, from: SocketAddr) -> Outcome {
        let since = Instant::now();
        let asked = |kind| self.metrics.asked(transport, from.is_ipv4(), kind, packet.len());
        let request = match message::read(packet, transport) {
            Read::Nothing => return Outcome::Nothing,
            Read::Refused(code, bytes) => {
                asked(None);
                self.metrics.answered(transport, code, "", bytes.len(), since.elapsed());
                return Outcome::Answer(bytes);
            }
            Read::Request(request) => request,
        };
        asked(Some(request.query.query_type()));
        if !self.clients.iter().any(|net| net.contains(&from.ip())) {
            let answer = Answer::of(ResponseCode::Refused);
            return Outcome::Answer(self.finish(&request, answer, false, "", since));
        }
        match self.step(&request) {
            Step::Done {
                answer,
                authoritative,
                plugin,
            } => Outcome::Answer(self.finish(&request, answer, authoritative, plugin, since)),
            Step::Ask { begun, query } => match Arc::clone(&self.waiting).try_acquire_owned() {
                Ok(permit) => Outcome::Later(Box::new(Pending {
                    resolver: Arc::clone(self),
                    request,
                    begun,
                    query,
                    since,
                    _permit: permit,
                })),
                Err(_) => {
                    self.metrics.rejects.inc();
                    let answer = Answer::of(ResponseCode::Refused);
                    Outcome::Answer(self.finish(&request, answer, false, FORWARD, since))
                }
            },
        }
    }

    fn finish(
        &self,
        request: &Request,
        answer: Answer,
        authoritative: bool,
        plugin: &'static str,
        since: Instant,
    ) -> Vec<u8> {
        let code = answer.code;
        let bytes = request.write(answer, authoritative);
        self.metrics
            .answered(request.transport, code, plugin, bytes.len(), since.elapsed());
        bytes
    }

    fn step(&self, request: &Request) -> Step {
        let query = &request.query;
        let refused = || Step::Done {
            answer: Answer::of(ResponseCode::Refused),
            authoritative: false,
            plugin: "",
        };
        // Whole zones are nobody's business, and neither is a loop probe that came home.
        let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
        if query.query_class() != DNSClass::IN
            || transfer
            || self.forwarder.is_own_probe(query.name(), query.query_type())
        {
            return refused();
        }
        let mut begun = Answer::default();
        let mut query = query.clone();
        for _ in 0..=MAX_ALIASES {
            let Some(known) = self.cluster(&query, request.room()) else {
                return self.elsewhere(request, begun, query, refused);
            };
            let alias = known.alias.clone();
            begun.join(known);
            match alias {
                Some(target) => drop(query.set_name(target)),
                None => {
                    return Step::Done {
                        answer: begun,
                        authoritative: true,
                        plugin: KUBERNETES,
                    };
                }
            }
        }
        Step::Done {
            answer: Answer::of(ResponseCode::ServFail),
            authoritative: true,
            plugin: KUBERNETES,
        }
    }

    /// What the cluster says; nothing where it has no say.
    fn cluster(&self, query: &Query, room: usize) -> Option<Answer> {
        if !self.zone.holds(query.name()) {
            return answer::reverse(&self.index.read(), &self.zone, query);
        }
        if !self.is_synced() {
            return Some(Answer::of(ResponseCode::ServFail));
        }
        Some(answer::answer(&self.index.read(), &self.zone, query, room))
    }

    fn elsewhere(&self, request: &Request, mut begun: Answer, query: Query, refused: impl Fn() -> Step) -> Step {
        self.metrics.cache_requests.inc();
        if let Some((says, known)) = self.cache.get(&key(request, &query)) {
            self.metrics.hit(says);
            begun.join(known);
            return Step::Done {
                answer: begun,
                authoritative: false,
                plugin: CACHE,
            };
        }
        self.metrics.cache_misses.inc();
        // Who wants no recursion wants to know what we know.
        if !request.recursion_desired {
            return refused();
        }
        Step::Ask { begun, query }
    }
}

fn key(request: &Request, query: &Query) -> Key {
    Key {
        name: query.name().to_lowercase(),
        kind: query.query_type(),
        dnssec_ok: request.edns.is_some_and(|edns| edns.dnssec_ok),
        checking_disabled: request.checking_disabled,
    }
}

// === impl Pending ===

impl Pending {
    /// Waits for the answer, and writes it.
    pub(crate) async fn answer(self: Box<Self>) -> Vec<u8> {
        let known = self.resolver.forwarder.ask(key(&self.request, &self.query)).await;
        let mut answer = self.begun;
        answer.join((*known).clone());
        self.resolver.finish(&self.request, answer, false, FORWARD, self.since)
    }
}
