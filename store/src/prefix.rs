//! Prefixes that end at a slash, so that one kind's keys never reach another's.

/// A directory of keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prefix {
    /// Always ends with a slash.
    text: String,
}

impl Prefix {
    /// The directory at `path`, with or without a slash at its end; empty for the whole store.
    pub fn new(path: &str) -> Self {
        let mut text = path.to_owned();
        if !text.ends_with('/') {
            text.push('/');
        }
        Self { text }
    }

    /// Whether `key` is in it.
    pub fn contains(&self, key: &str) -> bool {
        key.starts_with(&self.text)
    }

    /// Every key in it is greater than this.
    pub fn start(&self) -> &str {
        &self.text
    }

    /// Every key in it is less than this.
    pub fn end(&self) -> String {
        // The character after the slash: no key in the directory reaches it.
        let mut end = self.text[..self.text.len() - 1].to_owned();
        end.push('0');
        end
    }
}

#[cfg(test)]
mod tests {
    use super::Prefix;

    #[test]
    fn a_prefix_is_a_directory() {
        let cases = [
            ("/registry/core/pods", "/registry/core/pods/default/a", true),
            ("/registry/core/pods/", "/registry/core/pods/default/a", true),
            ("/registry/core/pods", "/registry/core/podsx/default/a", false),
            ("/registry/core/pods", "/registry/core/pods", false),
            ("/registry/core/pods/default", "/registry/core/pods/default-2/a", false),
            (
                "/registry/core/pods/default",
                "/registry/core/pods/default/\u{10ffff}",
                true,
            ),
            ("", "/anything", true),
        ];
        for (prefix, key, expected) in cases {
            let prefix = Prefix::new(prefix);
            assert_eq!(prefix.contains(key), expected, "{prefix:?} {key}");
            let in_range = key > prefix.start() && key < prefix.end().as_str();
            assert_eq!(in_range, expected, "range of {prefix:?}, {key}");
        }
    }
}
