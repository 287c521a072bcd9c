//! Values as policy documents write them: durations (GEP-2257), percents, labels; and near names for suggestions.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hanse_identity::ServiceName;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest duration that a document may say (the longest that one GEP-2257 part can write).
const MAX_DURATION: Duration = Duration::from_secs(99_999 * 3600);

/// Why a text is not the value it should be, as a sentence with the fix in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("{0:?} is not a duration; write it like 500ms, 2s or 1m30s")]
    Duration(String),
    #[error("{0:?} is not a percentage; write it like 70%")]
    Percent(String),
    #[error("{0:?} is not a time like 2027-01-31T12:00:00Z")]
    Moment(String),
    #[error("{0:?} is not a name: {1}")]
    Label(String, &'static str),
}

/// A duration, whole milliseconds; written like `500ms`, `2s`, `1m30s` (GEP-2257).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyDuration(Duration);

/// A share in permille, 0 to 1000; written like `70%` or `62.5%`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u32);

/// One DNS label: the name of an object or a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(String);

impl PolicyDuration {
    /// Whole milliseconds of it, at most what a document can say.
    pub fn new(duration: Duration) -> Self {
        let whole = Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        Self(whole.min(MAX_DURATION))
    }

    pub const fn get(self) -> Duration {
        self.0
    }

    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl Percent {
    /// From permille; `None` above 1000.
    pub fn from_permille(permille: u32) -> Option<Self> {
        (permille <= 1000).then_some(Self(permille))
    }

    pub const fn permille(self) -> u32 {
        self.0
    }

    /// 0.0 to 1.0.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 1000.0
    }
}

impl Label {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PolicyDuration {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let err = || ValueError::Duration(text.chars().take(40).collect());
        let mut rest = text;
        let mut sum = Duration::ZERO;
        let mut parts = 0;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            parts += 1;
            if digits == 0 || digits > 5 || parts > 4 {
                return Err(err());
            }
            let (number, after) = rest.split_at(digits);
            let number: u64 = number.parse().map_err(|_| err())?;
            let unit = after.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, after) = after.split_at(unit);
            sum += match unit {
                "h" => Duration::from_secs(number * 3600),
                "m" => Duration::from_secs(number * 60),
                "s" => Duration::from_secs(number),
                "ms" => Duration::from_millis(number),
                _ => return Err(err()),
            };
            rest = after;
        }
        if parts == 0 || sum > MAX_DURATION { Err(err()) } else { Ok(Self(sum)) }
    }
}

impl fmt::Display for PolicyDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0s");
        }
        let seconds = self.0.as_secs();
        let parts = [
            (seconds / 3600, "h"),
            (seconds / 60 % 60, "m"),
            (seconds % 60, "s"),
            (u64::from(self.0.subsec_millis()), "ms"),
        ];
        parts.iter().filter(|(n, _)| *n > 0).try_for_each(|(n, unit)| write!(f, "{n}{unit}"))
    }
}

impl FromStr for Percent {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let err = || ValueError::Percent(text.chars().take(40).collect());
        let number = text.strip_suffix('%').ok_or_else(err)?;
        let (whole, tenth) = match number.split_once('.') {
            Some((whole, tenth)) if tenth.len() == 1 => (whole, tenth),
            Some(_) => return Err(err()),
            None => (number, "0"),
        };
        let digits = |t: &str| !t.is_empty() && t.len() <= 3 && t.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(tenth) {
            return Err(err());
        }
        let whole: u32 = whole.parse().map_err(|_| err())?;
        let tenth: u32 = tenth.parse().map_err(|_| err())?;
        Self::from_permille(whole * 10 + tenth).ok_or_else(err)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 10, self.0 % 10) {
            (whole, 0) => write!(f, "{whole}%"),
            (whole, tenth) => write!(f, "{whole}.{tenth}%"),
        }
    }
}

impl FromStr for Label {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        // The rules for a label live with the names; a service's second half is one.
        match ServiceName::new("default", text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(e) => Err(ValueError::Label(text.chars().take(80).collect(), e.rule())),
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

macro_rules! text_serde {
    ($($type:ty),*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

text_serde!(PolicyDuration, Percent, Label);

/// The known name that `text` most likely stands for: few edits away, upper and lower case being the same.
pub fn near<'n>(text: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    // What a stranger wrote may be long; nothing that long is a slip of the pen.
    if text.len() > 80 {
        return None;
    }
    let allowed = (text.chars().count() / 3).clamp(1, 3);
    let folded = text.to_ascii_lowercase();
    known
        .into_iter()
        .filter(|name| *name != text)
        .map(|name| (distance(&folded, &name.to_ascii_lowercase()), name))
        .filter(|(edits, _)| *edits <= allowed)
        .min()
        .map(|(_, name)| name)
}

/// Insertions, deletions, replacements and swaps of neighbours between two texts (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        rows[i][0] = i;
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_as_gep_2257_says() {
        for (text, millis, again) in [
            ("2s", 2000, "2s"),
            ("500ms", 500, "500ms"),
            ("1m30s", 90_000, "1m30s"),
            ("1500ms", 1500, "1s500ms"),
            ("0s", 0, "0s"),
            ("1h", 3_600_000, "1h"),
            ("30s1m", 90_000, "1m30s"),
            ("99999h", 359_996_400_000, "99999h"),
        ] {
            let duration: PolicyDuration = text.parse().unwrap();
            assert_eq!(duration.get(), Duration::from_millis(millis), "{text}");
            assert_eq!(duration.to_string(), again);
            assert_eq!(again.parse::<PolicyDuration>().unwrap(), duration);
        }
        for text in ["", "2", "s", "1.5s", "-1s", "100000s", "1s1s1s1s1s", "2d", "1 s", "99999h1h", "１s"] {
            assert!(text.parse::<PolicyDuration>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn percents_keep_a_tenth() {
        assert_eq!("70%".parse::<Percent>().unwrap().permille(), 700);
        assert_eq!("62.5%".parse::<Percent>().unwrap().to_string(), "62.5%");
        assert_eq!("100%".parse::<Percent>().unwrap().fraction(), 1.0);
        for text in ["70", "101%", "100.1%", "-1%", "%", "1.25%", ".5%", "1000%", "7 %"] {
            assert!(text.parse::<Percent>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn near_names_are_few_edits_away() {
        let fields = ["parentRefs", "hostnames", "rules", "matches"];
        assert_eq!(near("parentRef", fields), Some("parentRefs"));
        assert_eq!(near("parentrefs", fields), Some("parentRefs"));
        assert_eq!(near("rluse", fields), None);
        assert_eq!(near("ruels", fields), Some("rules"));
        assert_eq!(near("filters", fields), None);
        assert_eq!(near("reviews-v9", ["reviews-v2", "ratings"]), Some("reviews-v2"));
        assert_eq!(near("rules", fields), None);
    }
}
