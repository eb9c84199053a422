//! Name resolution out of a file like `/etc/resolv.conf`.

use std::io::ErrorKind;
use std::path::Path;

use crate::config::Dns;
use crate::error::{Code, Error};

pub(super) fn read(path: &Path) -> Result<Dns, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
        // Upstream's words.
        ErrorKind::NotFound => Error::new(
            Code::Internal,
            format!("open {}: no such file or directory", path.display()),
        ),
        _ => Error::internal(format_args!("open {}", path.display()), &source),
    })?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.nameservers.extend(words.next()),
            Some("domain") => dns.domain = words.next().unwrap_or_default(),
            Some("search") => dns.search.extend(words),
            Some("options") => dns.options.extend(words),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_lines_are_read() {
        let dns =
            parse("# made by hand\nnameserver 10.96.0.10\nsearch a.b  b\noptions ndots:5\ndomain x\n\nsortlist 1\n");
        assert_eq!(dns.nameservers, ["10.96.0.10"]);
        assert_eq!(
            (dns.search, dns.options, dns.domain),
            (vec!["a.b".into(), "b".into()], vec!["ndots:5".into()], "x".into())
        );
    }
}
