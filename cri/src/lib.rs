//! Client of the container runtime: CRI v1, containerd's events and image import, CRI log files.
