//! Kernel networking: namespaces, netlink, iptables-restore transactions, conntrack, sysctl.
