//! Text that a request is told of by: names of clusters, services and identities, made once and shared by all requests.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// A name as text. Cheap to copy; the copies know each other without a look at the letters (`key`).
#[derive(Clone, Default)]
pub struct Text(Option<Arc<str>>);

impl Text {
    pub fn of(name: &impl fmt::Display) -> Self {
        name.to_string().into()
    }

    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }

    /// The same for all copies, for as long as one of them lives; others may have the same letters.
    pub fn key(&self) -> usize {
        self.0.as_ref().map_or(0, |text| Arc::as_ptr(text).addr())
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(Some(text).filter(|text| !text.is_empty()).map(Arc::from))
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialEq<String> for Text {
    fn eq(&self, other: &String) -> bool {
        self.as_str() == other
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}
