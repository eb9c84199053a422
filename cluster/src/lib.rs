//! A whole cluster on one machine, each node a network namespace with its own containerd.
