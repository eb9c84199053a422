//! What happens to headers on the way: what belongs to one connection goes, what tells of the client is added.

use std::net::{IpAddr, SocketAddr};

use http::header::{CONNECTION, COOKIE, EXPECT, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// RFC 9110 section 7.6.1, and what older specifications and browsers add to it.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    TE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authorization"),
    HeaderName::from_static("http2-settings"),
];

/// Who sent a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    /// The other end of the connection.
    pub(crate) address: SocketAddr,
    /// Whether it came through TLS.
    pub(crate) secure: bool,
    /// The port that it came to.
    pub(crate) port: u16,
}

impl Client {
    pub(crate) fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

/// The protocol that a request wants to change to, when it may: h2c would let everything after it pass unseen.
pub(crate) fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asks = tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let mut values = headers.get_all(UPGRADE).iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    let name = value.to_str().ok()?.trim();
    let forbidden = name.contains(',')
        || ["h2c", "tls", "http"].iter().any(|bad| {
            let protocol = name.split('/').next().unwrap_or_default();
            protocol.eq_ignore_ascii_case(bad)
        });
    (asks && !name.is_empty() && !forbidden).then(|| value.clone())
}

/// Whether the client takes trailers (RFC 9110 section 10.1.4); gRPC servers want to be told.
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"))
}

/// Removes what belongs to one connection only.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| token.parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Removes headers whose names have underscores, as nginx does: many programs read `X_Forwarded_For` as
/// `X-Forwarded-For`, so that a client could say with it what only proxies may.
fn drop_ambiguous(headers: &mut HeaderMap) {
    let ambiguous: Vec<_> = headers
        .keys()
        .filter(|name| name.as_str().contains('_'))
        .cloned()
        .collect();
    for name in ambiguous {
        headers.remove(name);
    }
}

/// Makes one `Cookie` of several: HTTP/2 may split it, other protocols know one only (RFC 9113 section 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() < 2 {
        return;
    }
    if let Ok(mut joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
        joined.set_sensitive(true);
        headers.insert(COOKIE, joined);
    }
}

/// Keeps the upgrade for the next connection.
pub(crate) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Whether the original request came through TLS, as far as the client can be believed.
pub(crate) fn came_securely(headers: &HeaderMap, client: &Client, trusted: &[IpNet]) -> bool {
    let told = || {
        headers
            .get(FORWARDED_PROTO)
            .is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"))
    };
    client.secure || (is_trusted(client.address.ip(), trusted) && told())
}

/// Makes a client's headers those of the request to an endpoint, but for upgrades and `Host`.
pub(crate) fn forward(headers: &mut HeaderMap, client: &Client, host: &str, trusted: &[IpNet]) {
    strip(headers);
    drop_ambiguous(headers);
    // The client is told to go on as soon as its body is read here.
    headers.remove(EXPECT);
    let address = client.address.ip().to_canonical();
    let (chain, real) = if is_trusted(address, trusted) {
        let told = tokens(headers, &FORWARDED_FOR).map(str::to_owned).collect::<Vec<_>>();
        let real = told
            .iter()
            .rev()
            .filter_map(|text| text.parse::<IpAddr>().ok())
            .find(|ip| !is_trusted(*ip, trusted));
        let chain = told.into_iter().chain([address.to_string()]).collect::<Vec<_>>();
        (chain.join(", "), real.unwrap_or(address))
    } else {
        for name in [FORWARDED_PROTO, FORWARDED_HOST, FORWARDED_PORT, FORWARDED] {
            headers.remove(name);
        }
        (address.to_string(), address)
    };
    let mut set = |name: HeaderName, value: String, keep: bool| {
        let Ok(value) = HeaderValue::try_from(value) else {
            return;
        };
        if !keep || !headers.contains_key(&name) {
            headers.insert(name, value);
        }
    };
    set(FORWARDED_FOR, chain, false);
    set(REAL_IP, real.to_string(), false);
    // What is still there came from a trusted proxy.
    set(FORWARDED_PROTO, client.scheme().to_owned(), true);
    set(FORWARDED_HOST, host.to_owned(), true);
    set(FORWARDED_PORT, client.port.to_string(), true);
}

fn is_trusted(ip: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|range| range.contains(&ip.to_canonical()))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn client(address: &str) -> Client {
        Client {
            address: address.parse().unwrap(),
            secure: true,
            port: 443,
        }
    }

    fn shown(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn what_belongs_to_a_connection_goes_and_the_client_is_told_of() {
        let mut headers = map(&[
            ("connection", "close, x-named"),
            ("x-named", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
            ("expect", "100-continue"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("x-forwarded-proto", "gopher"),
            ("forwarded", "for=6.6.6.6"),
            ("accept", "*/*"),
        ]);
        forward(&mut headers, &client("1.2.3.4:5"), "a.test", &[]);
        assert_eq!(
            shown(&headers),
            [
                "accept: */*",
                "x-forwarded-for: 1.2.3.4",
                "x-forwarded-host: a.test",
                "x-forwarded-port: 443",
                "x-forwarded-proto: https",
                "x-real-ip: 1.2.3.4",
            ]
        );
    }

    #[test]
    fn a_trusted_proxy_is_believed_as_far_as_the_last_one_that_is() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let mut headers = map(&[
            ("x-forwarded-for", "6.6.6.6, 1.2.3.4"),
            ("x-forwarded-for", "10.0.0.9"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "shown.test"),
        ]);
        forward(&mut headers, &client("10.0.0.1:5"), "a.test", &trusted);
        assert_eq!(
            shown(&headers),
            [
                "x-forwarded-for: 6.6.6.6, 1.2.3.4, 10.0.0.9, 10.0.0.1",
                "x-forwarded-host: shown.test",
                "x-forwarded-port: 443",
                "x-forwarded-proto: http",
                "x-real-ip: 1.2.3.4",
            ]
        );
        let plain = Client {
            secure: false,
            ..client("10.0.0.1:5")
        };
        let told = map(&[("x-forwarded-proto", "https")]);
        assert!(came_securely(&told, &plain, &trusted));
        assert!(!came_securely(&told, &plain, &[]));
    }

    #[test]
    fn names_with_underscores_go_no_further() {
        let mut headers = map(&[
            ("x_forwarded_for", "127.0.0.1"),
            ("x-forwarded_proto", "https"),
            ("_", "a"),
            ("x-fine", "b"),
        ]);
        forward(&mut headers, &client("192.0.2.1:5000"), "one.test", &[]);
        assert!(headers.keys().all(|name| !name.as_str().contains('_')), "{headers:?}");
        assert_eq!(headers["x-fine"], "b");
    }

    #[test]
    fn cookies_become_one() {
        for (lines, wanted) in [
            (&[][..], &[][..]),
            (&[("cookie", "a=1; b=2")], &["a=1; b=2"]),
            (
                &[("cookie", "a=1"), ("cookie", "b=2"), ("x", "y"), ("cookie", "c=3; d=4")],
                &["a=1; b=2; c=3; d=4"],
            ),
        ] {
            let mut headers = map(lines);
            join_cookies(&mut headers);
            let found: Vec<_> = headers.get_all(COOKIE).iter().collect();
            assert_eq!(found, wanted, "{lines:?}");
        }
    }

    #[test]
    fn upgrades_pass_but_not_to_another_http() {
        for (lines, wanted) in [
            (
                &[("connection", "Upgrade"), ("upgrade", "websocket")][..],
                Some("websocket"),
            ),
            (
                &[("connection", "keep-alive, upgrade"), ("upgrade", "SPDY/3.1")],
                Some("SPDY/3.1"),
            ),
            (&[("upgrade", "websocket")], None),
            (&[("connection", "upgrade")], None),
            (&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")], None),
            (&[("connection", "upgrade"), ("upgrade", "H2C")], None),
            (&[("connection", "upgrade"), ("upgrade", "TLS/1.0")], None),
            (&[("connection", "upgrade"), ("upgrade", "websocket, h2c")], None),
            (
                &[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")],
                None,
            ),
        ] {
            let found = wanted_upgrade(&map(lines));
            assert_eq!(found.as_ref().map(|value| value.to_str().unwrap()), wanted, "{lines:?}");
        }
    }
}
