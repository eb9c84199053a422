//! One printer of error chains, for every log line and exit path.

use std::error::Error;

/// An error and all of its causes on one line, outermost first: `start sandbox web-1: connect to runtime: No such file`.
///
/// Errors in this house print only their own step, so nothing is said twice.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries print their cause, even twice (kube adds its debug form): the cause itself says it better.
        let quoted = if cause_text.is_empty() {
            None
        } else {
            text.find(&format!(": {cause_text}"))
        };
        if let Some(at) = quoted {
            text.truncate(at);
        }
        text.push_str(": ");
        text.push_str(&cause_text);
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::error_chain;

    #[derive(Debug, thiserror::Error)]
    #[error("read {path}")]
    struct Read {
        path: &'static str,
        source: std::io::Error,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("load configuration: {0}")]
    struct Repeats(#[source] std::io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("ApiError: {0} ({0:?})")]
    struct Debugs(#[source] std::io::Error);

    #[test]
    fn the_debug_form_of_a_cause_is_left_out() {
        let error = Lists(Debugs(std::io::Error::other("pods \"a\" not found: NotFound")));
        assert_eq!(
            error_chain(&error),
            "list pods: ApiError: pods \"a\" not found: NotFound"
        );
    }

    #[derive(Debug, thiserror::Error)]
    #[error("list pods: {0}")]
    struct Lists(#[source] Debugs);

    #[test]
    fn causes_follow_outermost_first() {
        let error = Read {
            path: "/a",
            source: std::io::Error::other("disk on fire"),
        };
        assert_eq!(error_chain(&error), "read /a: disk on fire");
    }

    #[test]
    fn a_cause_already_printed_is_not_repeated() {
        let error = Repeats(std::io::Error::other("disk on fire"));
        assert_eq!(error_chain(&error), "load configuration: disk on fire");
    }
}
