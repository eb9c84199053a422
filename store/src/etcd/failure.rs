//! What etcd's refusals mean.

use tonic::{Code, Status};

use crate::Error;

/// A failed call as an error.
pub(super) fn explain(step: &'static str, status: &Status) -> Error {
    // A status that etcd sent has no source; one that was made for a broken connection has, and that tells more.
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(status);
    let mut innermost = None;
    while let Some(error) = cause {
        innermost = Some(error.to_string());
        cause = error.source();
    }
    let message = innermost.unwrap_or_else(|| status.message().to_owned());
    let remedy = remedy(&message, is_passing(status));
    Error::Etcd { step, message, remedy }
}

/// What a person can do about a failure of which that was said. Handshakes are told in the words of the TLS library.
fn remedy(message: &str, passing: bool) -> &'static str {
    const REFUSED: [&str; 5] = [
        "BadCertificate",
        "CertificateRequired",
        "CertificateExpired",
        "CertificateUnknown",
        "UnknownCA",
    ];
    let alert = message.split_once("received fatal alert: ").map(|(_, alert)| alert);
    match () {
        () if message.contains("database space exceeded") => {
            ": compact and defragment it (or raise its --quota-backend-bytes), then disarm its alarm"
        }
        () if message.contains("request is too large") => {
            ": its --max-request-bytes is below etcd's default, 1.5 MiB; raise it"
        }
        () if message.contains("invalid peer certificate") => {
            ": the member's certificate must be of the authority in --etcd-cafile, valid now, and for the host in --etcd-servers"
        }
        () if alert == Some("ProtocolVersion") || message.contains("ServerDoesNotSupportTls12Or13") => {
            ": the member speaks neither TLS 1.2 nor 1.3, and nothing older is spoken with it"
        }
        () if alert.is_some_and(|alert| REFUSED.contains(&alert)) => {
            ": the member wants a certificate in --etcd-certfile that the authority in its --trusted-ca-file has signed"
        }
        () if passing => ": are its members running, and does a majority of them reach each other?",
        () => "",
    }
}

/// An answer that etcd cannot have given.
pub(super) fn garbled(message: &str) -> Error {
    Error::Etcd {
        step: "read an answer",
        message: message.to_owned(),
        remedy: "",
    }
}

/// Whether asking again may help: the member is away, a leader is being elected.
pub(super) fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
    ) || std::error::Error::source(status).is_some()
}

pub(super) fn is_compacted(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("has been compacted")
}

pub(super) fn is_future(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("future revision")
}

#[cfg(test)]
mod tests {
    use super::remedy;

    #[test]
    fn remedies() {
        for (message, passing, expected) in [
            ("etcdserver: mvcc: database space exceeded", false, "defragment"),
            ("etcdserver: request is too large", false, "--max-request-bytes"),
            ("h:1: invalid peer certificate: UnknownIssuer", true, "--etcd-cafile"),
            (
                "h:1: received fatal alert: ProtocolVersion",
                true,
                "neither TLS 1.2 nor 1.3",
            ),
            ("received fatal alert: CertificateRequired", true, "--etcd-certfile"),
            (
                "h:1: received fatal alert: HandshakeFailure",
                true,
                "are its members running",
            ),
            (
                "h:1: Connection refused (os error 111)",
                true,
                "are its members running",
            ),
        ] {
            let text = remedy(message, passing);
            assert!(text.contains(expected), "{message}: {text}");
        }
        assert_eq!(remedy("etcdserver: user name is empty", false), "");
    }
}
