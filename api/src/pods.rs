//! What several components ask about a typed pod.
