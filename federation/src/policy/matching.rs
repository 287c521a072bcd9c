//! Texts held against what a document wants of them: paths, and values of headers and queries, as routes and access rules
//! do alike. Expressions are compiled once, within limits.

use regex::{Regex, RegexBuilder};

use super::document::{HeaderMatchKind, PathMatch, PathMatchKind};

/// Longest regular expression that is compiled, in bytes.
pub const MAX_PATTERN_BYTES: usize = 1024;
/// Most memory that a compiled expression, and then its cache, may take.
const MAX_COMPILED_BYTES: usize = 128 * 1024;
/// Deepest nesting of an expression.
const MAX_NESTING: u32 = 32;

/// Why a regular expression is not compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("it is longer than {MAX_PATTERN_BYTES} bytes")]
    TooLong,
    #[error("compiled, it needs more than {MAX_COMPILED_BYTES} bytes")]
    TooCostly,
    #[error("{0}")]
    Syntax(String),
}

/// What a path has to be.
#[derive(Debug)]
pub(super) enum PathTest {
    Exact(String),
    /// Without trailing slash: empty matches every path.
    Prefix(String),
    Pattern(Regex),
}

/// What a value has to be, as a whole.
#[derive(Debug)]
pub(super) enum ValueTest {
    Exact(String),
    Pattern(Regex),
}

impl PathTest {
    pub(super) fn compile(wanted: &PathMatch) -> Option<Self> {
        Some(match wanted.kind {
            PathMatchKind::Exact => Self::Exact(wanted.value.clone()),
            PathMatchKind::PathPrefix => Self::Prefix(wanted.value.trim_end_matches('/').to_owned()),
            PathMatchKind::RegularExpression => Self::Pattern(compile_pattern(&wanted.value).ok()?),
        })
    }

    pub(super) fn holds(&self, path: &str) -> bool {
        match self {
            Self::Exact(wanted) => path == wanted,
            Self::Prefix(prefix) => match path.strip_prefix(prefix.as_str()) {
                Some(rest) => prefix.is_empty() || rest.is_empty() || rest.starts_with('/'),
                None => false,
            },
            Self::Pattern(pattern) => pattern.is_match(path),
        }
    }
}

impl ValueTest {
    pub(super) fn compile(kind: HeaderMatchKind, value: &str) -> Option<Self> {
        Some(match kind {
            HeaderMatchKind::Exact => Self::Exact(value.to_owned()),
            HeaderMatchKind::RegularExpression => Self::Pattern(compile_pattern(value).ok()?),
        })
    }

    pub(super) fn holds(&self, value: &str) -> bool {
        match self {
            Self::Exact(wanted) => value == wanted,
            Self::Pattern(pattern) => pattern.is_match(value),
        }
    }
}

/// Compiles an expression that has to match the whole text, within the limits.
pub fn compile_pattern(pattern: &str) -> Result<Regex, PatternError> {
    if pattern.len() > MAX_PATTERN_BYTES {
        return Err(PatternError::TooLong);
    }
    // By itself first: what is put around it must not be what closes it.
    build(pattern)?;
    build(&format!("^(?:{pattern})$"))
}

fn build(pattern: &str) -> Result<Regex, PatternError> {
    let mut builder = RegexBuilder::new(pattern);
    builder.size_limit(MAX_COMPILED_BYTES).dfa_size_limit(MAX_COMPILED_BYTES).nest_limit(MAX_NESTING);
    builder.build().map_err(|e| match e {
        regex::Error::CompiledTooBig(_) => PatternError::TooCostly,
        // The last line says what is wrong; those above draw the pattern.
        other => PatternError::Syntax(other.to_string().lines().last().unwrap_or_default().to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_bounded_and_match_the_whole() {
        assert!(compile_pattern("/r/.*").unwrap().is_match("/r/7"));
        assert!(!compile_pattern("a|b").unwrap().is_match("ab"));
        assert_eq!(compile_pattern(&"a".repeat(MAX_PATTERN_BYTES + 1)).unwrap_err(), PatternError::TooLong);
        assert_eq!(compile_pattern("(\\w{100}){100}").unwrap_err(), PatternError::TooCostly);
        let nested = format!("{}{}", "(".repeat(100), ")".repeat(100));
        assert!(matches!(compile_pattern(&nested), Err(PatternError::Syntax(_))));
        let Err(PatternError::Syntax(why)) = compile_pattern("(") else { panic!("not a pattern") };
        assert!(why.contains("unclosed group"), "{why}");
        let Err(PatternError::Syntax(why)) = compile_pattern("/a)|(?:.*") else {
            panic!("matches everything")
        };
        assert!(why.contains("unopened group"), "{why}");
    }
}
