//! Where a redirect leads: RFC 3986, as far as a `Location` header needs it.

/// Where to ask next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Another path and query of the same server.
    Here(String),
    /// A whole URL.
    Elsewhere(String),
}

/// What `location` means in an answer to a request for `path`, which may have a query.
pub(super) fn resolve(https: bool, path: &str, location: &str) -> Place {
    let location = location.split('#').next().unwrap_or_default();
    if has_scheme(location) {
        return Place::Elsewhere(location.to_owned());
    }
    if location.starts_with("//") {
        let scheme = if https { "https" } else { "http" };
        return Place::Elsewhere(format!("{scheme}:{location}"));
    }
    let base = path.split('?').next().unwrap_or_default();
    let (own, query) = match location.split_once('?') {
        Some((own, query)) => (own, format!("?{query}")),
        None => (location, String::new()),
    };
    Place::Here(match own {
        "" if query.is_empty() => path.to_owned(),
        "" => format!("{base}{query}"),
        own if own.starts_with('/') => format!("{}{query}", without_dots(own)),
        own => {
            let directory = base.rfind('/').map_or("/", |slash| &base[..=slash]);
            format!("{}{query}", without_dots(&format!("{directory}{own}")))
        }
    })
}

fn has_scheme(location: &str) -> bool {
    let scheme = location.split_once(':').map(|(scheme, _)| scheme);
    scheme.is_some_and(|scheme| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    })
}

/// A path without `.` and `..`.
fn without_dots(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').skip(1) {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let is_directory = path.ends_with("/.") || path.ends_with("/..");
    if is_directory {
        parts.push("");
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_a_browser_would_go() {
        let here = |path: &str| Place::Here(path.to_owned());
        let elsewhere = |url: &str| Place::Elsewhere(url.to_owned());
        let cases = [
            ("/a/b?c", "login.jsp", here("/a/login.jsp")),
            ("/a/b?c", "./x/", here("/a/x/")),
            ("/a/b?c", "../x?y", here("/x?y")),
            ("/a/b?c", "../../../x", here("/x")),
            ("/a/b?c", "..", here("/")),
            ("/a/b/", ".", here("/a/b/")),
            ("/a/b?c", "/x/../y#z", here("/y")),
            ("/a/b?c", "?d", here("/a/b?d")),
            ("/a/b?c", "#d", here("/a/b?c")),
            ("/a/b?c", "", here("/a/b?c")),
            ("/a/b?c", "x?u=http://y", here("/a/x?u=http://y")),
            ("/a/b?c", "/x:y", here("/x:y")),
            ("/a/b?c", "//h/x", elsewhere("http://h/x")),
            ("/a/b?c", "https://h:1/x#y", elsewhere("https://h:1/x")),
        ];
        for (path, location, place) in cases {
            assert_eq!(resolve(false, path, location), place, "{location} from {path}");
        }
        assert_eq!(resolve(true, "/", "//h/"), elsewhere("https://h/"));
    }
}
