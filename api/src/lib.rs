//! The Kubernetes object model as all components see it: schema data, quantities, selectors, validation. No I/O.
