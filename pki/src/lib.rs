//! Certificate authority, issuing, service-account keys and kubeconfig files.
