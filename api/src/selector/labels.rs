//! Label selectors: the query form, `metav1.LabelSelector`, and matching.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

use super::Error;
use crate::field::quote;
use crate::names;

/// How a requirement compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The key is there with one of these values (sorted).
    In(Vec<String>),
    /// The key is missing, or has none of these values (sorted).
    NotIn(Vec<String>),
    /// The key is there.
    Exists,
    /// The key is missing.
    DoesNotExist,
    /// The value is an integer greater than this.
    GreaterThan(i64),
    /// The value is an integer less than this.
    LessThan(i64),
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// What is wanted of its value.
    pub operator: Operator,
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let contains = |values: &[String], v: &str| values.iter().any(|x| x == v);
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| contains(values, v)),
            Operator::NotIn(values) => value.is_none_or(|v| !contains(values, v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan(n) => number().is_some_and(|v| v > *n),
            Operator::LessThan(n) => number().is_some_and(|v| v < *n),
        }
    }
}

/// A conjunction of requirements on labels. The empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Selects no object at all, as an absent `metav1.LabelSelector` does.
    pub const NOTHING: LabelSelector = LabelSelector {
        requirements: Vec::new(),
        nothing: true,
    };

    /// Reads the query form: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    ///
    /// # Errors
    /// When the text is malformed or names impossible labels.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut parser = Parser { rest: text };
        let mut requirements = Vec::new();
        parser.skip_space();
        while !parser.rest.is_empty() {
            requirements.push(parser.requirement()?);
            parser.skip_space();
            if !parser.rest.is_empty() {
                parser.expect(',')?;
                parser.skip_space();
                if parser.rest.is_empty() {
                    return Err(Error("found '', expected: identifier after ','".to_owned()));
                }
            }
        }
        Ok(LabelSelector {
            requirements,
            nothing: false,
        })
    }

    /// Every label of `labels` with its value.
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let requirements = labels
            .into_iter()
            .map(|(k, v)| Requirement {
                key: k.to_owned(),
                operator: Operator::In(vec![v.to_owned()]),
            })
            .collect();
        LabelSelector {
            requirements,
            nothing: false,
        }
    }

    /// Reads a `metav1.LabelSelector`. Absent selects nothing, empty selects everything.
    ///
    /// # Errors
    /// When an operator is unknown or lacks (or has needless) values.
    pub fn from_label_selector(selector: Option<&Value>) -> Result<Self, Error> {
        let Some(selector) = selector.filter(|s| !s.is_null()) else {
            return Ok(LabelSelector::NOTHING);
        };
        let labels = selector.get("matchLabels").and_then(Value::as_object);
        let mut out = LabelSelector::from_map(
            labels
                .into_iter()
                .flatten()
                .filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))),
        );
        for expression in selector
            .get("matchExpressions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let text = |key: &str| expression.get(key).and_then(Value::as_str).unwrap_or_default();
            let values: Vec<String> = expression
                .get("values")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect();
            out.requirements
                .push(expression_requirement(text("key"), text("operator"), values)?);
        }
        Ok(out)
    }

    /// Reads a typed `metav1.LabelSelector`. Absent selects nothing, empty selects everything.
    ///
    /// # Errors
    /// As [`Self::from_label_selector`].
    pub fn from_typed(
        selector: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>,
    ) -> Result<Self, Error> {
        let Some(selector) = selector else {
            return Ok(LabelSelector::NOTHING);
        };
        let labels = selector.match_labels.iter().flatten();
        let mut out = LabelSelector::from_map(labels.map(|(k, v)| (k.as_str(), v.as_str())));
        for e in selector.match_expressions.iter().flatten() {
            out.requirements.push(expression_requirement(
                &e.key,
                &e.operator,
                e.values.clone().unwrap_or_default(),
            )?);
        }
        Ok(out)
    }

    /// Whether labels satisfy every requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// As [`Self::matches`], for typed objects that may have no labels.
    pub fn matches_labels(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches_with(|key| labels.and_then(|l| l.get(key)).map(String::as_str))
    }

    /// As [`Self::matches`], for untyped objects.
    pub fn matches_map(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.matches_with(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
    }

    /// As [`Self::matches`], over any lookup.
    pub fn matches_with<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(get(&r.key)))
    }

    /// Whether every object is selected.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Whether no object is selected, whatever its labels.
    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    /// The requirements, in the order given.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Requirement { key, operator }) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", values[0])?,
                Operator::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", values[0])?,
                Operator::In(values) => write!(f, "{key} in ({})", values.join(","))?,
                Operator::NotIn(values) => write!(f, "{key} notin ({})", values.join(","))?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
                Operator::GreaterThan(n) => write!(f, "{key}>{n}")?,
                Operator::LessThan(n) => write!(f, "{key}<{n}")?,
            }
        }
        Ok(())
    }
}

fn expression_requirement(key: &str, operator: &str, mut values: Vec<String>) -> Result<Requirement, Error> {
    values.sort();
    let operator = match (operator, values.is_empty()) {
        ("In", false) => Operator::In(values),
        ("NotIn", false) => Operator::NotIn(values),
        ("In" | "NotIn", true) => {
            return Err(Error(
                "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty".into(),
            ));
        }
        ("Exists", true) => Operator::Exists,
        ("DoesNotExist", true) => Operator::DoesNotExist,
        ("Exists" | "DoesNotExist", false) => {
            return Err(Error(
                "values: Invalid value: values set must be empty for exists and does not exist".into(),
            ));
        }
        (other, _) => return Err(Error(format!("\"{other}\" is not a valid label selector operator"))),
    };
    Ok(Requirement {
        key: key.to_owned(),
        operator,
    })
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
    }

    fn take(&mut self, token: &str) -> bool {
        self.rest.strip_prefix(token).is_some_and(|rest| {
            self.rest = rest;
            true
        })
    }

    fn expect(&mut self, c: char) -> Result<(), Error> {
        self.skip_space();
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => Err(Error(format!("found '{}', expected: '{c}'", self.peek_word()))),
        }
    }

    fn word(&mut self) -> &'a str {
        self.skip_space();
        let end = self
            .rest
            .find([' ', '\t', '\r', '\n', '=', '!', '(', ')', ',', '<', '>'])
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn peek_word(&self) -> &'a str {
        let mut copy = Parser { rest: self.rest };
        match copy.word() {
            "" => &self.rest[..self.rest.chars().next().map_or(0, char::len_utf8)],
            word => word,
        }
    }

    fn key(&mut self) -> Result<String, Error> {
        let key = self.word();
        if key.is_empty() {
            return Err(Error(format!("found '{}', expected: identifier", self.peek_word())));
        }
        match names::qualified_name(key).as_slice() {
            [] => Ok(key.to_owned()),
            wrong => Err(Error(format!(
                "key: Invalid value: {}: {}",
                quote(key),
                wrong.join("; ")
            ))),
        }
    }

    fn requirement(&mut self) -> Result<Requirement, Error> {
        self.skip_space();
        if self.take("!") {
            return Ok(Requirement {
                key: self.key()?,
                operator: Operator::DoesNotExist,
            });
        }
        let key = self.key()?;
        self.skip_space();
        let operator = if self.rest.is_empty() || self.rest.starts_with(',') {
            Operator::Exists
        } else if self.take("==") || self.take("=") {
            Operator::In(vec![self.value(&key)?])
        } else if self.take("!=") {
            Operator::NotIn(vec![self.value(&key)?])
        } else if self.take(">") {
            Operator::GreaterThan(self.integer()?)
        } else if self.take("<") {
            Operator::LessThan(self.integer()?)
        } else {
            match self.word() {
                "in" => Operator::In(self.values(&key)?),
                "notin" => Operator::NotIn(self.values(&key)?),
                "" => {
                    return Err(Error(format!(
                        "found '{}', expected: in, notin, =, ==, !=, gt, lt",
                        self.peek_word()
                    )));
                }
                other => {
                    return Err(Error(format!(
                        "found '{other}', expected: in, notin, =, ==, !=, gt, lt"
                    )));
                }
            }
        };
        Ok(Requirement { key, operator })
    }

    fn value(&mut self, key: &str) -> Result<String, Error> {
        let value = self.word();
        match names::label_value(value).as_slice() {
            [] => Ok(value.to_owned()),
            wrong => {
                let value = quote(value);
                Err(Error(format!(
                    "values[0][{key}]: Invalid value: {value}: {}",
                    wrong.join("; ")
                )))
            }
        }
    }

    fn integer(&mut self) -> Result<i64, Error> {
        let word = self.word();
        word.parse().map_err(|_| {
            Error(format!(
                "values[0]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                quote(word)
            ))
        })
    }

    fn values(&mut self, key: &str) -> Result<Vec<String>, Error> {
        self.expect('(')?;
        let mut values = Vec::new();
        loop {
            values.push(self.value(key)?);
            self.skip_space();
            if self.take(")") {
                break;
            }
            self.expect(',')?;
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}
