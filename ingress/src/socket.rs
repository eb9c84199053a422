//! What all TCP connections are set to.

use std::time::Duration;

use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;

const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(15);
/// A peer that takes nothing for so long is gone, or holds us up.
const UNACKNOWLEDGED_MS: u32 = 60_000;

/// Allows as many open files as the system does, and returns how many: each request holds two connections.
pub(crate) fn raise_open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let allowed = match setrlimit(Resource::Nofile, all) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            limit.current
        }
    };
    allowed.unwrap_or(u64::MAX)
}

/// Small pieces go at once, and a peer that is gone is noticed, be it silent or not reading.
pub(crate) fn prepare(stream: &TcpStream) {
    let set = || -> Result<(), rustix::io::Errno> {
        sockopt::set_tcp_nodelay(stream, true)?;
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
        sockopt::set_tcp_keepintvl(stream, PROBE_EVERY)?;
        sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS)
    };
    if let Err(error) = set() {
        // The connection may just have been reset: whoever uses it finds out.
        tracing::debug!(%error, "cannot set socket options");
    }
}
