//! Owner references of typed objects.
