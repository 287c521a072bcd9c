//! Conditions of AccessPolicy rules: expressions of CEL (Common Expression Language), compiled once and held against each
//! request. Pure.
//!
//! What can be written is the part of CEL that has no loops and makes no values, so that the cost is bounded by the text;
//! its types are known before it is ever asked (`read`). What is asked of what is not there is an error, never a value: a
//! header that is absent, there twice or no text, a claim of another type, the identity of a caller that has none.

use std::borrow::Cow;

use hanse_identity::jwt::user::UserToken;
use hanse_identity::{ClusterName, SpiffeId};
use regex::Regex;
use serde_json::Value as Json;

use super::access::{Asked, Caller, namespace_of};

mod read;

/// Longest text of a condition, in bytes.
pub const MAX_BYTES: usize = 1024;

/// A compiled condition.
#[derive(Debug)]
pub struct Condition {
    root: Expr,
    /// It looks at the path.
    paths: bool,
    /// It looks at it where a path that is written otherwise would open what this one shuts.
    shuts_paths: bool,
    /// It looks at an end user's token.
    users: bool,
    namespaces: bool,
    clusters: bool,
}

/// What is wrong with a text, and at which of its characters, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at character {at}: {message}")]
pub struct Wrong {
    pub at: usize,
    pub message: String,
    pub fix: String,
}

/// What was asked for is not there, or not what it should be: neither true nor false.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

/// What a condition is about.
pub struct About<'a> {
    pub caller: &'a Caller<'a>,
    /// `None`: a connection that is not read.
    pub asked: Option<&'a Asked<'a>>,
}

/// Names as Envoy has them, where it has the attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attribute {
    Method,
    /// Without the query.
    Path,
    Principal,
    Namespace,
    Cluster,
    /// Of the end user.
    User,
    Mtls,
}

#[derive(Debug)]
enum Expr {
    Bool(bool),
    Int(i64),
    Text(String),
    List(Vec<Expr>),
    Attribute(Attribute),
    Header(String),
    HasHeader(String),
    Claim(Vec<String>),
    HasClaim(Vec<String>),
    Not(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Compare(Comparison, Box<Expr>, Box<Expr>),
    In(Box<Expr>, Box<Expr>),
    Test(TextTest, Box<Expr>, Box<Expr>),
    Matches(Box<Expr>, Regex),
    Size(Box<Expr>),
    Lower(Box<Expr>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TextTest {
    StartsWith,
    EndsWith,
    Contains,
}

enum Value<'v> {
    Bool(bool),
    Int(i64),
    Text(Cow<'v, str>),
    List(&'v [Expr]),
    Claim(&'v Json),
}

impl Condition {
    pub fn compile(text: &str) -> Result<Self, Wrong> {
        read::read(text)
    }

    /// Whether it looks at the path.
    pub fn reads_path(&self) -> bool {
        self.paths
    }

    /// Whether it shuts anything by the path: `!`, `!=`, or a comparison of truths.
    pub fn shuts_by_path(&self) -> bool {
        self.shuts_paths
    }

    /// Whether it looks at an end user's token.
    pub fn reads_user(&self) -> bool {
        self.users
    }

    /// Whether it takes a namespace for what it is without asking in which cluster: each has its own of that name.
    pub fn takes_any_namespace(&self) -> bool {
        self.namespaces && !self.clusters
    }

    pub fn holds(&self, about: &About<'_>) -> Result<bool, Unknown> {
        self.root.truth(about)
    }
}

impl Expr {
    fn truth(&self, about: &About<'_>) -> Result<bool, Unknown> {
        match self.value(about)? {
            Value::Bool(truth) => Ok(truth),
            Value::Claim(claim) => claim.as_bool().ok_or(Unknown),
            _ => Err(Unknown),
        }
    }

    fn value<'v>(&'v self, about: &About<'v>) -> Result<Value<'v>, Unknown> {
        let truth = |truth: bool| Ok(Value::Bool(truth));
        match self {
            Self::Bool(value) => truth(*value),
            Self::Int(value) => Ok(Value::Int(*value)),
            Self::Text(text) => Ok(Value::Text(Cow::Borrowed(text))),
            Self::List(items) => Ok(Value::List(items)),
            Self::Attribute(attribute) => attribute.value(about),
            Self::Header(name) => {
                header(about, name)?.map(|text| Value::Text(Cow::Owned(text))).ok_or(Unknown)
            }
            Self::HasHeader(name) => truth(header(about, name)?.is_some()),
            Self::Claim(path) => claim(about, path).map(Value::Claim).ok_or(Unknown),
            Self::HasClaim(path) => truth(claim(about, path).is_some()),
            Self::Not(inner) => truth(!inner.truth(about)?),
            // As CEL has it: an error on one side does not matter where the other side decides.
            Self::And(one, other) => match (one.truth(about), other) {
                (Ok(false), _) => truth(false),
                (Ok(true), other) => truth(other.truth(about)?),
                (Err(unknown), other) => match other.truth(about) {
                    Ok(false) => truth(false),
                    _ => Err(unknown),
                },
            },
            Self::Or(one, other) => match (one.truth(about), other) {
                (Ok(true), _) => truth(true),
                (Ok(false), other) => truth(other.truth(about)?),
                (Err(unknown), other) => match other.truth(about) {
                    Ok(true) => truth(true),
                    _ => Err(unknown),
                },
            },
            Self::Compare(how, one, other) => truth(compare(*how, &one.value(about)?, &other.value(about)?)?),
            Self::In(one, many) => truth(is_in(&one.value(about)?, &many.value(about)?, about)?),
            Self::Test(test, one, other) => {
                let (one, other) = (one.text(about)?, other.text(about)?);
                truth(match test {
                    TextTest::StartsWith => one.starts_with(&*other),
                    TextTest::EndsWith => one.ends_with(&*other),
                    TextTest::Contains => one.contains(&*other),
                })
            }
            Self::Matches(one, pattern) => truth(pattern.is_match(&one.text(about)?)),
            Self::Size(one) => {
                let size = match one.value(about)? {
                    Value::Text(text) => text.chars().count(),
                    Value::List(items) => items.len(),
                    Value::Claim(Json::String(text)) => text.chars().count(),
                    Value::Claim(Json::Array(items)) => items.len(),
                    _ => return Err(Unknown),
                };
                Ok(Value::Int(i64::try_from(size).map_err(|_| Unknown)?))
            }
            Self::Lower(one) => Ok(Value::Text(Cow::Owned(one.text(about)?.to_ascii_lowercase()))),
        }
    }

    fn text<'v>(&'v self, about: &About<'v>) -> Result<Cow<'v, str>, Unknown> {
        match self.value(about)? {
            Value::Text(text) => Ok(text),
            Value::Claim(Json::String(text)) => Ok(Cow::Borrowed(text)),
            _ => Err(Unknown),
        }
    }
}

impl Attribute {
    fn value<'v>(self, about: &About<'v>) -> Result<Value<'v>, Unknown> {
        let caller = about.caller;
        let text = |text: Option<&'v str>| text.map(|text| Value::Text(Cow::Borrowed(text))).ok_or(Unknown);
        match self {
            // Methods have a case (RFC 9110 §9.1), and some servers do not know it.
            Self::Method => text(
                about.asked.map(|asked| asked.method).filter(|m| !m.bytes().any(|b| b.is_ascii_lowercase())),
            ),
            Self::Path => text(about.asked.map(|asked| asked.path)),
            Self::Principal => {
                caller.id.map(|id: &SpiffeId| Value::Text(Cow::Owned(id.to_string()))).ok_or(Unknown)
            }
            Self::Namespace => text(caller.id.and_then(namespace_of)),
            Self::Cluster => text(caller.cluster.map(ClusterName::as_str)),
            Self::User => text(caller.user.map(|user: &UserToken| user.principal.as_str())),
            Self::Mtls => Ok(Value::Bool(caller.id.is_some())),
        }
    }
}

/// The one value of a header. What two readers could take for different things is no value.
fn header(about: &About<'_>, name: &str) -> Result<Option<String>, Unknown> {
    let asked = about.asked.ok_or(Unknown)?;
    let mut found = Ok(None);
    (asked.header)(name, &mut |value| {
        found = match (&found, std::str::from_utf8(value)) {
            (Ok(None), Ok(text)) => Ok(Some(text.to_owned())),
            _ => Err(Unknown),
        };
    });
    found
}

fn claim<'v>(about: &About<'v>, path: &[String]) -> Option<&'v Json> {
    let (first, rest) = path.split_first()?;
    let claim = about.caller.user?.claims.get(first)?;
    rest.iter().try_fold(claim, |claim, name| claim.as_object()?.get(name))
}

fn compare(how: Comparison, one: &Value<'_>, other: &Value<'_>) -> Result<bool, Unknown> {
    use std::cmp::Ordering;
    let order = match (scalar(one)?, scalar(other)?) {
        (Value::Bool(one), Value::Bool(other)) => one.cmp(&other),
        (Value::Int(one), Value::Int(other)) => one.cmp(&other),
        (Value::Text(one), Value::Text(other)) => one.cmp(&other),
        // CEL calls values of different types different; here that is how a claim would escape a Deny.
        _ => return Err(Unknown),
    };
    Ok(match how {
        Comparison::Equal => order == Ordering::Equal,
        Comparison::NotEqual => order != Ordering::Equal,
        Comparison::Less => order == Ordering::Less,
        Comparison::LessOrEqual => order != Ordering::Greater,
        Comparison::Greater => order == Ordering::Greater,
        Comparison::GreaterOrEqual => order != Ordering::Less,
    })
}

/// A claim that is one value, as that value.
fn scalar<'v>(value: &'v Value<'_>) -> Result<Value<'v>, Unknown> {
    Ok(match value {
        Value::Bool(truth) => Value::Bool(*truth),
        Value::Int(number) => Value::Int(*number),
        Value::Text(text) => Value::Text(Cow::Borrowed(&**text)),
        Value::Claim(Json::Bool(truth)) => Value::Bool(*truth),
        Value::Claim(Json::Number(number)) => Value::Int(number.as_i64().ok_or(Unknown)?),
        Value::Claim(Json::String(text)) => Value::Text(Cow::Borrowed(text)),
        Value::Claim(_) | Value::List(_) => return Err(Unknown),
    })
}

/// What a list has that cannot be compared is an error, unless what is sought is there beside it.
fn is_in(one: &Value<'_>, many: &Value<'_>, about: &About<'_>) -> Result<bool, Unknown> {
    let mut found = Ok(false);
    let mut see = |same: Result<bool, Unknown>| match same {
        Ok(true) => found = Ok(true),
        Err(unknown) if found == Ok(false) => found = Err(unknown),
        _ => {}
    };
    match many {
        Value::List(items) => {
            for item in *items {
                see(item.value(about).and_then(|item| compare(Comparison::Equal, one, &item)));
            }
        }
        Value::Claim(Json::Array(items)) => {
            items.iter().for_each(|item| see(compare(Comparison::Equal, one, &Value::Claim(item))));
        }
        _ => return Err(Unknown),
    }
    found
}

#[cfg(test)]
mod tests;
