//! A node with pods on a bridge, and a client on its segment.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use skiff_daemon::{Context, Shutdown};
use skiff_net::netlink::{BridgeOptions, Netlink, Route, VethOptions};
use skiff_net::netns::Namespace;
use skiff_net::sysctl;
use skiff_proxy::{Config, KubeProxyConfiguration};
use tokio::sync::Notify;

use crate::api::Api;

pub(crate) const NODE: &str = "172.30.0.1";
pub(crate) const OUTSIDE: &str = "172.30.0.100";

pub(crate) struct World {
    pub(crate) node: Namespace,
    pub(crate) outside: Namespace,
    pub(crate) api: Api,
}

/// A running proxy; it ends with this.
pub(crate) struct Running {
    shutdown: Shutdown,
    killed: Arc<Notify>,
    pub(crate) metrics: skiff_daemon::Metrics,
    thread: Option<thread::JoinHandle<()>>,
}

fn address(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn up(netlink: &mut Netlink, name: &str, net: &str) -> u32 {
    let index = netlink.need_link(name).unwrap().index;
    netlink.set_up(index).unwrap();
    if !net.is_empty() {
        netlink.add_address(index, address(net)).unwrap();
    }
    index
}

impl World {
    pub(crate) fn new() -> Self {
        let (node, outside) = (Namespace::anonymous().unwrap(), Namespace::anonymous().unwrap());
        let mut netlink = Netlink::open_in(&node).unwrap();
        up(&mut netlink, "lo", "");
        netlink.add_bridge("cni0", &BridgeOptions::default()).unwrap();
        up(&mut netlink, "cni0", "10.244.0.1/24");
        let options = VethOptions {
            peer_namespace: Some(&outside),
            ..VethOptions::default()
        };
        netlink.add_veth("lan0", "eth0", &options).unwrap();
        let lan = up(&mut netlink, "lan0", &format!("{NODE}/24"));
        // Somewhere for packets to Services that nobody answers at.
        let mut default = Route::through(address("0.0.0.0/0"), OUTSIDE.parse().unwrap());
        default.link = Some(lan);
        netlink.add_route(&default).unwrap();
        let mut client = Netlink::open_in(&outside).unwrap();
        up(&mut client, "eth0", &format!("{OUTSIDE}/24"));
        node.run(|| sysctl::set("net.ipv4.ip_forward", "1")).unwrap().unwrap();
        Self {
            node,
            outside,
            api: Api::new(),
        }
    }

    /// A pod that answers on 8080, by TCP and UDP, with its name and whom it sees.
    pub(crate) fn pod(&self, name: &'static str, ip: &str) -> Namespace {
        let pod = Namespace::anonymous().unwrap();
        let mut netlink = Netlink::open_in(&self.node).unwrap();
        let bridge = netlink.need_link("cni0").unwrap().index;
        let port = format!("v{name}");
        let options = VethOptions {
            peer_namespace: Some(&pod),
            master: Some(bridge),
            up: true,
            ..VethOptions::default()
        };
        netlink.add_veth(&port, "eth0", &options).unwrap();
        let index = netlink.need_link(&port).unwrap().index;
        netlink.set_hairpin(index, true).unwrap();
        let mut inner = Netlink::open_in(&pod).unwrap();
        up(&mut inner, "lo", "");
        up(&mut inner, "eth0", &format!("{ip}/24"));
        inner
            .add_route(&Route::through(address("0.0.0.0/0"), "10.244.0.1".parse().unwrap()))
            .unwrap();
        serve(&pod, name);
        pod
    }

    pub(crate) fn start(&self, config: &str) -> Running {
        self.start_with(config, |_| {})
    }

    pub(crate) fn start_with(&self, config: &str, adjust: impl FnOnce(&mut Config)) -> Running {
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16\n{config}"
        );
        let mut config = KubeProxyConfiguration::parse(&text).unwrap().for_node("here").unwrap();
        adjust(&mut config);
        let context = Context::default();
        let (shutdown, metrics) = (context.shutdown.clone(), context.metrics.clone());
        let killed = Arc::new(Notify::new());
        let kill = killed.clone();
        let (api, namespace) = (
            self.api.clone(),
            self.node.run(|| Namespace::current().unwrap()).unwrap(),
        );
        let thread = thread::spawn(move || {
            let work = || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    tokio::select! {
                        ended = skiff_proxy::run(config, api.client(), context) => ended.unwrap(),
                        () = kill.notified() => {}
                    }
                });
                // Nothing of it gets another turn; a transaction that was handed over goes on, as it would alone.
                runtime.shutdown_background();
            };
            namespace.run(work).unwrap();
        });
        Running {
            shutdown,
            killed,
            metrics,
            thread: Some(thread),
        }
    }

    pub(crate) fn shell(&self, line: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        let output = self.node.run(|| command.output()).unwrap().unwrap();
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// A line of shell outside of the node.
    pub(crate) fn shell_outside(&self, line: &str) {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        let output = self.outside.run(|| command.output()).unwrap().unwrap();
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    pub(crate) fn rules(&self) -> String {
        self.shell("iptables-save")
    }
}

impl Running {
    /// Takes its turn away for good, wherever it is, and waits for that.
    pub(crate) fn kill(mut self) {
        self.killed.notify_one();
        self.thread.take().unwrap().join().unwrap();
    }

    /// Ends it and waits for that.
    pub(crate) fn stop(mut self) {
        self.shutdown.cancel();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn serve(pod: &Namespace, name: &'static str) {
    let listener = pod.run(|| TcpListener::bind("0.0.0.0:8080")).unwrap().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let from = stream.peer_addr().unwrap().ip();
                writeln!(stream, "{name} {from}").ok();
                let mut line = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
                    write!(stream, "{line}").ok();
                    line.clear();
                }
            });
        }
    });
    let socket = pod.run(|| UdpSocket::bind("0.0.0.0:8080")).unwrap().unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(format!("{name} {}", from.ip()).as_bytes(), from).ok();
        }
    });
}

/// Connects, and reads who answers and whom it sees.
pub(crate) fn ask(from: &Namespace, to: &str) -> io::Result<(String, IpAddr)> {
    let mut line = String::new();
    BufReader::new(connect(from, to)?).read_line(&mut line)?;
    parse(&line)
}

fn parse(line: &str) -> io::Result<(String, IpAddr)> {
    let (name, seen) = line
        .trim()
        .split_once(' ')
        .ok_or_else(|| io::Error::other(format!("odd answer {line:?}")))?;
    Ok((name.to_owned(), seen.parse().unwrap()))
}

pub(crate) fn connect(from: &Namespace, to: &str) -> io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    let stream = from
        .run(|| TcpStream::connect_timeout(&to, Duration::from_millis(700)))
        .unwrap()?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(stream)
}

/// Asks by HTTP: the status and the rest of what comes.
pub(crate) fn get(from: &Namespace, to: &str, path: &str) -> io::Result<(u16, String)> {
    let mut stream = connect(from, to)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|text| text.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("odd answer {answer:?}")))?;
    Ok((status, answer))
}

/// A UDP client that keeps its port: one flow.
pub(crate) fn udp_client(from: &Namespace) -> UdpSocket {
    let socket = from.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket
}

pub(crate) fn ask_udp(socket: &UdpSocket, to: &str) -> io::Result<String> {
    socket.send_to(b"?", to)?;
    let mut buffer = [0; 64];
    let (length, _) = socket.recv_from(&mut buffer)?;
    Ok(parse(&String::from_utf8_lossy(&buffer[..length]))?.0)
}

/// Waits for a condition.
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    for _ in 0..1000 {
        if let Some(value) = condition() {
            return value;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}

/// The rules without counters and comments of the program, in an order of their own.
pub(crate) fn settled(rules: &str) -> Vec<String> {
    let mut lines: Vec<_> = rules
        .lines()
        .filter(|line| line.starts_with("-A") || line.starts_with(":KUBE"))
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}
