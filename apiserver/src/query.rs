//! The query of a request, decoded once.

/// Decoded query parameters, in their order.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads the part of a URI behind `?`.
    pub fn parse(query: Option<&str>) -> Self {
        Self(
            query
                .map(|query| form_urlencoded::parse(query.as_bytes()).into_owned().collect())
                .unwrap_or_default(),
        )
    }

    /// The first value under a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The first value under a name, unless it is empty.
    pub fn non_empty(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// Every value under a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// A flag in Go's manner: present and not `0` or `false`.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| !matches!(value, "0" | "false" | "False" | "FALSE" | "f" | "F"))
    }

    /// A whole number; `None` when it is absent or no number.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.get(name)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::Query;

    #[test]
    fn values_are_decoded() {
        let query = Query::parse(Some(
            "labelSelector=a%3Db%2Cc&limit=500&watch=1&dryRun=All&flag=false&empty=",
        ));
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert_eq!(query.number("limit"), Some(500));
        assert!(query.flag("watch"));
        assert!(!query.flag("flag"));
        assert!(!query.flag("absent"));
        assert_eq!(query.non_empty("empty"), None);
    }
}
