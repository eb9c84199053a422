//! The proxy's figures on a real kernel, in network namespaces of its own: `cargo bench -p skiff-proxy`.
//!
//! The proxy is a process of its own; the API that it watches is scripted, and served by HTTP. Printed are rows of a
//! table: cold start, memory, how soon a new Service answers, the CPU time of one changed endpoint, the first packet
//! through the first and the last Service. `UPSTREAM_PROXY=/path/to/kube-proxy` (1.20) measures that one too, after ours at
//! each size.

#![allow(clippy::unwrap_used, clippy::disallowed_types)] // Measuring code: a panic ends it, and time is the real one.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use skiff_net::netns::Namespace;

#[path = "../tests/kernel/api.rs"]
#[allow(dead_code)] // Tests use more of it.
mod api;
#[path = "services/upstream.rs"]
mod upstream;
#[path = "../tests/kernel/world.rs"]
#[allow(dead_code)] // As above.
mod world;

use api::{Api, service, slice};
use world::{World, ask, connect};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Set for the process that is the proxy: where its API is.
const CHILD: &str = "SKIFF_BENCH_PROXY_API";
const TRIES: usize = 15;
/// The Service that comes last by name.
const LAST: &str = "10.96.255.1:80";

/// Which proxy is measured.
#[derive(Clone, Copy)]
pub(crate) enum Subject<'a> {
    Ours,
    /// The path of a kube-proxy.
    Upstream(&'a str),
}

fn main() {
    if let Ok(url) = std::env::var(CHILD) {
        return proxy(&url);
    }
    // `cargo nextest` and `cargo test` ask benches, too, what they have.
    if std::env::args().any(|argument| argument == "--list" || argument == "--exact") {
        return;
    }
    let upstream = std::env::var("UPSTREAM_PROXY").ok();
    println!("| what | skiff |{}", upstream.as_ref().map_or("", |_| " upstream |"));
    println!("| --- | --- |{}", upstream.as_ref().map_or("", |_| " --- |"));
    // `cargo bench -p skiff-proxy -- 1000x2` measures that alone.
    let asked: Vec<String> = std::env::args().filter(|argument| argument.contains('x')).collect();
    for (services, endpoints) in [(10, 2), (1000, 2), (5000, 2), (10_000, 2), (10_000, 5)] {
        let name = format!("{services}x{endpoints}");
        if asked.iter().all(|argument| argument.contains('/')) || asked.contains(&name) {
            let ours = measure(Subject::Ours, services, endpoints);
            let theirs = upstream
                .as_deref()
                .map(|path| measure(Subject::Upstream(path), services, endpoints));
            for (row, (what, seen)) in ours.into_iter().enumerate() {
                let beside = theirs.as_ref().map(|theirs| format!(" {} |", theirs[row].1));
                println!("| {what} | {seen} |{}", beside.unwrap_or_default());
            }
        }
    }
}

/// The proxy's process: it ends with its parent.
fn proxy(url: &str) {
    let context = skiff_daemon::Context::default();
    let shutdown = context.shutdown.clone();
    std::thread::spawn(move || {
        std::io::stdin().read_to_end(&mut Vec::new()).ok();
        shutdown.cancel();
    });
    let text =
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16\n";
    let config = skiff_proxy::KubeProxyConfiguration::parse(text)
        .unwrap()
        .for_node("here")
        .unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        skiff_proxy::run(config, client, context).await.unwrap();
    });
}

struct Proxy {
    child: Child,
    began: Instant,
    _home: Option<tempfile::TempDir>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Proxy {
    fn start(subject: Subject<'_>, node: &Namespace, api: &Api) -> Self {
        let listener = node
            .run(|| std::net::TcpListener::bind("127.0.0.1:0"))
            .unwrap()
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let api = api.clone();
        let old = matches!(subject, Subject::Upstream(_));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let answer = move |request: axum::extract::Request| {
                    let api = api.clone();
                    async move {
                        match old {
                            true => upstream::answer(&api, request).await,
                            false => api.answer(request.uri()).map(axum::body::Body::new),
                        }
                    }
                };
                axum::serve(listener, axum::Router::new().fallback(answer))
                    .await
                    .unwrap();
            });
        });
        let began = Instant::now();
        let (mut command, home) = match subject {
            Subject::Ours => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.env(CHILD, url).stdin(Stdio::piped());
                (command, None)
            }
            Subject::Upstream(path) => {
                let home = tempfile::tempdir().unwrap();
                (upstream::command(path, &url, home.path()), Some(home))
            }
        };
        let child = node.run(|| command.spawn()).unwrap().unwrap();
        Self {
            child,
            began,
            _home: home,
        }
    }

    /// Private and shared memory, in MB.
    fn memory(&self) -> (f64, f64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
        };
        (field("RssAnon"), field("VmRSS"))
    }

    /// Whether a program works for it.
    fn has_children(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let children = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("children"));
        let mut all = threads.flatten().filter_map(|thread| children(thread).ok());
        all.any(|children| !children.trim().is_empty())
    }

    /// CPU time so far, its ended children's included.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        // utime, stime, cutime, cstime, in hundredths of a second.
        let ticks: u64 = fields[11..15].iter().map(|text| text.parse::<u64>().unwrap()).sum();
        Duration::from_millis(10 * ticks)
    }
}

/// All rules are in force: the last Service answers, and ours says so too.
fn is_ready(subject: Subject<'_>, world: &World) -> bool {
    let healthy = || world::get(&world.node, "127.0.0.1:10256", "/healthz").is_ok_and(|(status, _)| status == 200);
    ask(&world.node, LAST).is_ok() && (matches!(subject, Subject::Upstream(_)) || healthy())
}

fn measure(subject: Subject<'_>, services: usize, endpoints: usize) -> Vec<(String, String)> {
    let world = World::new();
    let _pod = world.pod("a", "10.244.0.2");
    let ranges =
        json!({"metadata": {"name": "kubernetes", "resourceVersion": "2"}, "spec": {"cidrs": ["10.96.0.0/12"]}});
    world.api.put("servicecidrs", ranges);
    world.api.put("nodes", api::node("", "10.244.0.0/24"));
    for index in 0..services {
        put(
            &world.api,
            &format!("s{index:05}"),
            &address(index),
            &far(index, endpoints),
        );
    }
    put(&world.api, "zz", "10.96.255.1", &["10.244.0.2".to_owned()]);
    let what = format!("{services} Services × {endpoints} endpoints");
    let mut rows = Vec::new();
    let mut row = |title: String, seen: String| rows.push((title, seen));
    let proxy = Proxy::start(subject, &world.node, &world.api);
    wait("the rules", || is_ready(subject, &world));
    let (wall, cpu) = (proxy.began.elapsed().as_secs_f64(), proxy.cpu().as_secs_f64());
    row(format!("cold start, {what}"), format!("{wall:.2} s, {cpu:.2} s of CPU"));

    // The other one takes seconds for each.
    let tries = match subject {
        Subject::Upstream(_) if services > 1000 => 3,
        _ => TRIES,
    };
    let mut times: Vec<_> = (0..tries).map(|index| new_service(&world, index)).collect();
    times.sort();
    let (middle, worst) = (ms(times[tries / 2]), ms(times[tries - 1]));
    row(
        format!("a new Service answers, beside {what}"),
        format!("p50 {middle:.1} ms, worst {worst:.1} ms"),
    );
    let (few, many) = (services <= 10, services >= 10_000);
    if few || many {
        let title = format!("one endpoint of 250 changes, beside {what}");
        row(title, one_endpoint(&world, &proxy));
    }
    if many {
        row(format!("first packet, {what}"), first_packets(&world, &proxy, services));
    }
    settle(&proxy);
    std::thread::sleep(Duration::from_secs(10));
    let (anonymous, resident) = proxy.memory();
    row(
        format!("memory, {what}"),
        format!("RSS {resident:.1} MB, of these private {anonymous:.1} MB"),
    );
    rows
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn address(index: usize) -> String {
    format!("10.{}.{}.{}", 100 + index / 50_000, index / 250 % 200, index % 250 + 1)
}

fn far(index: usize, endpoints: usize) -> Vec<String> {
    let each = (0..endpoints).map(|at| index * endpoints + at);
    each.map(|at| format!("10.244.{}.{}", 1 + at / 250 % 250, at % 250 + 1))
        .collect()
}

fn put(api: &Api, name: &str, ip: &str, endpoints: &[String]) {
    let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
    api.put("services", service(name, ip, json!({})));
    api.put("endpointslices", slice(name, "TCP", &endpoints));
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(600), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// From the creation of a Service and its slice to its first answer; a try that is refused is repeated at once.
fn new_service(world: &World, index: usize) -> Duration {
    let ip = format!("10.97.0.{}", index + 1);
    let began = Instant::now();
    put(&world.api, &format!("new{index}"), &ip, &["10.244.0.2".to_owned()]);
    wait("an answer", || ask(&world.node, &format!("{ip}:80")).is_ok());
    let took = began.elapsed();
    std::thread::sleep(Duration::from_millis(500));
    took
}

/// Waits until the proxy has nothing more to do: no program works for it, and it uses no time itself.
fn settle(proxy: &Proxy) {
    let mut quiet_since = Instant::now();
    let mut used = proxy.cpu();
    while quiet_since.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(100));
        let now = proxy.cpu();
        // It looks at things now and then.
        if now.saturating_sub(used) > Duration::from_millis(20) || proxy.has_children() {
            quiet_since = Instant::now();
        }
        used = now;
    }
}

/// CPU time of one endpoint of 250 that changes, among all the others.
fn one_endpoint(world: &World, proxy: &Proxy) -> String {
    let mut many: Vec<_> = far(200, 249);
    let change = |last: &str, many: &mut Vec<String>| {
        many.truncate(249);
        many.push(last.to_owned());
        put(&world.api, "many", "10.98.0.1", many);
    };
    change("10.244.0.2", &mut many);
    settle(proxy);
    let mut told = String::new();
    for (what, count, pause) in [("one by one", 5, None), ("20 within 2 s", 20, Some(100))] {
        let before = proxy.cpu();
        for index in 0..count {
            change(&format!("10.244.0.{}", 3 + index), &mut many);
            match pause {
                Some(pause) => std::thread::sleep(Duration::from_millis(pause)),
                None => settle(proxy),
            }
        }
        settle(proxy);
        let each = (proxy.cpu() - before) / count;
        write!(told, "{what}: {:.0} ms of CPU each; ", ms(each)).ok();
    }
    told.trim_end_matches("; ").to_owned()
}

/// The time of a connection through the first and the last rule of all.
fn first_packets(world: &World, proxy: &Proxy, services: usize) -> String {
    let mut told = String::new();
    for (what, index) in [("first", 0), ("last", services - 1)] {
        let name = format!("s{index:05}");
        put(&world.api, &name, &address(index), &["10.244.0.2".to_owned()]);
        let to = format!("{}:80", address(index));
        wait("an answer", || ask(&world.node, &to).is_ok());
        // By then its rules are among all others.
        settle(proxy);
        let mut times: Vec<_> = (0..50)
            .map(|_| {
                let began = Instant::now();
                let stream = connect(&world.node, &to).unwrap();
                let took = began.elapsed();
                BufReader::new(stream).read_line(&mut String::new()).unwrap();
                took
            })
            .collect();
        times.sort();
        write!(told, "{what} Service p50 {:.2} ms, ", ms(times[25])).ok();
    }
    told.trim_end_matches(", ").to_owned()
}
