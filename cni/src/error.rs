//! Errors as CNI has them: a code, a message, details.

use std::fmt;

use serde_json::json;

/// The codes of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The configuration's version is not spoken here.
    IncompatibleVersion,
    /// The configuration has a field that is not served here.
    UnsupportedField,
    /// The container or its namespace is not known.
    UnknownContainer,
    /// A variable is missing or wrong.
    InvalidEnvironment,
    /// Reading or writing failed.
    Io,
    /// The configuration is no JSON, or not of the right shape.
    Decoding,
    /// The configuration contradicts itself or misses something.
    InvalidConfiguration,
    /// The namespace is the plugin's own.
    InvalidNamespace,
    /// It may work later.
    TryAgainLater,
    /// The plugin cannot serve ADD now (STATUS).
    NotAvailable,
    /// Anything else: the kernel, another program.
    Internal,
    /// A code that another plugin gave.
    Other(u32),
}

impl Code {
    /// The number in the JSON.
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::UnknownContainer => 3,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decoding => 6,
            Self::InvalidConfiguration => 7,
            Self::InvalidNamespace => 8,
            Self::TryAgainLater => 11,
            Self::NotAvailable => 50,
            Self::Internal => 999,
            Self::Other(number) => number,
        }
    }
}

/// A failed request, as the runtime gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What kind of failure.
    pub code: Code,
    /// What failed.
    pub message: String,
    /// More about it; may be empty.
    pub details: String,
}

impl Error {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: String::new(),
        }
    }

    /// A failure of the kernel or of another program, with all its causes in the message: the runtime shows only that.
    pub(crate) fn internal(step: impl fmt::Display, cause: &dyn std::error::Error) -> Self {
        Self::new(Code::Internal, format!("{step}: {}", chain(cause)))
    }

    pub(crate) fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Adds a cause to the message.
    pub(crate) fn with(mut self, cause: &dyn std::error::Error) -> Self {
        self.message = format!("{}: {}", self.message, chain(cause));
        self
    }

    /// The error in JSON, as upstream's plugins print it.
    pub fn to_json(&self) -> String {
        let mut json = json!({ "code": self.code.number(), "msg": self.message });
        if !self.details.is_empty() {
            json["details"] = json!(self.details);
        }
        format!("{json:#}")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)?;
        if self.details.is_empty() {
            Ok(())
        } else {
            write!(formatter, "; {}", self.details)
        }
    }
}

impl std::error::Error for Error {}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
