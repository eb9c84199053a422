//! The CNI plugins that containerd executes: bridge, host-local, loopback.
