//! Services and EndpointSlices into packet rules, in upstream's iptables chains.
