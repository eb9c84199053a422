//! End-to-end suites on real clusters.
