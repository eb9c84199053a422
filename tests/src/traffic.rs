//! HTTP requests from inside a node's network, one after another, each counted: the measure of "no request failed".

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use skiff_net::netns::Namespace;

/// No answer within this time is a failure.
const PATIENCE: Duration = Duration::from_secs(3);

/// A running stream of requests; [`Traffic::stop`] tells how it went.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Outcome, skiff_net::netns::Error>>,
}

/// How a stream of requests went.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Requests answered with 200.
    pub answered: usize,
    /// What went wrong, one line a failed request.
    pub failures: Vec<String>,
    /// The different bodies seen, in order of their first appearance.
    pub bodies: Vec<String>,
}

impl Traffic {
    /// Starts asking `GET /` of `target` from inside `namespace`, about a hundred times a second, a new connection each.
    ///
    /// # Errors
    /// When the thread cannot enter the namespace.
    pub fn start(namespace: Namespace, target: SocketAddr) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let asked_to_stop = Arc::clone(&stop);
        let thread = namespace
            .spawn(move || {
                let mut outcome = Outcome::default();
                while !asked_to_stop.load(Ordering::Relaxed) {
                    outcome.count(get(target));
                    std::thread::sleep(Duration::from_millis(10));
                }
                outcome
            })
            .context("start traffic")?;
        Ok(Self { stop, thread })
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// When the thread panicked.
    pub fn stop(self) -> anyhow::Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the traffic thread panicked"))?
            .context("enter the namespace")
    }
}

impl Outcome {
    /// No request was lost while the second version of a test image took the first one's place.
    ///
    /// # Panics
    /// When one was, or when there were too few to tell.
    pub fn check_rolled_over(&self, through: &str) {
        let none: [&str; 0] = [];
        assert_eq!(
            self.failures, none,
            "requests through {through} lost during the rolling update"
        );
        assert!(self.answered > 50, "too few requests to tell: {}", self.answered);
        for version in ["version 1", "version 2"] {
            let seen = self.bodies.iter().any(|body| body.contains(version));
            assert!(seen, "{version} through {through}: {:?}", self.bodies);
        }
    }

    fn count(&mut self, result: anyhow::Result<String>) {
        match result {
            Ok(body) => {
                self.answered += 1;
                if !self.bodies.contains(&body) {
                    self.bodies.push(body);
                }
            }
            Err(error) => self
                .failures
                .push(format!("request {}: {error:#}", self.answered + self.failures.len())),
        }
    }
}

/// One `GET /` of `target` from inside `namespace`: the body of its answer.
///
/// # Errors
/// When there is no answer in time, or another than 200.
pub fn get_in(namespace: &Namespace, target: SocketAddr) -> anyhow::Result<String> {
    namespace.run(|| get(target)).context("enter the namespace")?
}

fn get(target: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE)).context("set a time limit")?;
    write!(stream, "GET / HTTP/1.0\r\nHost: {target}\r\n\r\n").context("send the request")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer")?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("half an answer: {answer:?}"))?;
    anyhow::ensure!(head.split_whitespace().nth(1) == Some("200"), "not 200: {head}");
    Ok(body.trim().to_owned())
}
