//! HTTPS in, bytes out: authentication, authorization, admission, registry, store.
