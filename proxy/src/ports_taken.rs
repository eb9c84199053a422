//! Node ports that a program of this node has already. The rules send packets to the Service all the same; who runs
//! the program wonders, and an event tells.

use std::collections::HashSet;
use std::fs;

use crate::model::Protocol;

/// A listening TCP socket's state in the kernel's list; a UDP socket that is bound has another.
const TCP_LISTEN: &str = "0A";
const UDP_BOUND: &str = "07";

/// The ports that programs of this thread's network namespace hold, on any address but loopback.
pub(crate) fn held() -> HashSet<(Protocol, u16)> {
    let lists = [
        ("tcp", Protocol::Tcp, TCP_LISTEN),
        ("tcp6", Protocol::Tcp, TCP_LISTEN),
        ("udp", Protocol::Udp, UDP_BOUND),
        ("udp6", Protocol::Udp, UDP_BOUND),
    ];
    let mut held = HashSet::new();
    for (file, protocol, state) in lists {
        // A kernel without IPv6 has fewer lists.
        let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        held.extend(ports(&text, state).map(|port| (protocol, port)));
    }
    held
}

/// Reads the kernel's list: `sl local_address rem_address st …`, addresses as `0100007F:1F90`.
fn ports<'a>(text: &'a str, state: &'a str) -> impl Iterator<Item = u16> + 'a {
    text.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_whitespace().skip(1);
        let (address, port) = words.next()?.split_once(':')?;
        let is_loopback = address.len() == 8 && address.ends_with("7F");
        (words.nth(1)? == state && !is_loopback).then(|| u16::from_str_radix(port, 16).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_found_in_the_kernels_list() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue\n\
             0: 00000000:7578 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1 1\n\
             1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 2 1\n\
             2: 0200A8C0:01BB 0100A8C0:C350 01 00000000:00000000 00:00000000 00000000 0 0 3 1\n\
             3: junk\n";
        assert_eq!(ports(text, TCP_LISTEN).collect::<Vec<_>>(), [30072]);
        let v6 = "h\n 0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 07 0\n";
        assert_eq!(ports(v6, UDP_BOUND).collect::<Vec<_>>(), [80]);
    }
}
