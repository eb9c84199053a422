//! The sockets: datagrams and connections in, answers out. Everything that a client can make grow has a bound.

mod tcp;
mod udp;

use std::net::SocketAddr;
use std::sync::Arc;

use nix::sys::socket::{setsockopt, sockopt};
use skiff_daemon::Shutdown;
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::task::JoinSet;

use crate::resolver::Resolver;

/// More sockets than this for datagrams bring nothing: the kernel is the slower part.
const MAX_WORKERS: usize = 4;
/// Room for more than ten thousand small datagrams, taken only while they wait.
const RECEIVE_BUFFER: usize = 16 << 20;
const BACKLOG: u32 = 1024;

/// Bound sockets of one address.
#[derive(Debug)]
pub(crate) struct Listener {
    tcp: TcpListener,
    udp: Vec<UdpSocket>,
    /// Where they are: the port is the system's choice when 0 was asked for.
    pub(crate) address: SocketAddr,
}

/// Binds the sockets.
///
/// # Errors
/// When somebody else has the port, or the address is not this machine's.
pub(crate) fn listen(address: SocketAddr) -> std::io::Result<Listener> {
    // TCP comes first: it cannot be shared, so that two servers on one address do not go unnoticed.
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let tcp = socket.listen(BACKLOG)?;
    let address = tcp.local_addr()?;
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get().min(MAX_WORKERS));
    let udp = (0..workers)
        .map(|_| datagrams(address))
        .collect::<std::io::Result<_>>()?;
    Ok(Listener { tcp, udp, address })
}

/// One of several sockets at the same address, among which the kernel spreads the clients.
fn datagrams(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = socket(address)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    // Beyond the system's limit where we may; else as far as it goes.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    let any = nix::sys::socket::SockaddrStorage::from(address);
    nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &any)?;
    UdpSocket::from_std(socket.into())
}

fn socket(address: SocketAddr) -> std::io::Result<std::os::fd::OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType};
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(nix::sys::socket::socket(family, SockType::Datagram, flags, None)?)
}

impl Listener {
    /// Answers until shutdown.
    pub(crate) async fn serve(self, resolver: Arc<Resolver>, shutdown: Shutdown) {
        let mut tasks = JoinSet::new();
        for socket in self.udp {
            let (resolver, socket) = (Arc::clone(&resolver), Arc::new(socket));
            tasks.spawn(shutdown.clone().run_until_cancelled_owned(udp::serve(socket, resolver)));
        }
        tasks.spawn(shutdown.run_until_cancelled_owned(tcp::serve(self.tcp, resolver)));
        while tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests;
