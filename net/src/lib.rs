//! Kernel networking for the components above: namespaces, links and routes, packet rules, connection tracking, sysctls.
//!
//! Everything here is synchronous and keeps no state: the kernel is the state. The CNI plugins use it directly; a
//! component with an async runtime calls it from `spawn_blocking` where a call may take more than a millisecond
//! (`iptables` runs a program, everything else is one or two system calls).
//!
//! A network namespace is a property of a thread. [`netns::Namespace::run`] therefore gives a closure a thread of its
//! own, and [`netlink::Netlink::open_in`] a socket that stays in the namespace whichever thread uses it.

pub mod conntrack;
pub mod iptables;
pub mod netlink;
pub mod netns;
pub mod nftables;
pub mod sysctl;
