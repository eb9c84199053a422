//! Packets between nodes: direct routes on one segment; writes the CNI configuration of its node.
