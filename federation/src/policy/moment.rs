//! Moments as policy documents write them: RFC 3339, in UTC.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hanse_identity::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::value::ValueError;

/// A moment, whole milliseconds; written like `2027-01-31T12:00:00Z`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(Timestamp);

impl Moment {
    pub const fn new(at: Timestamp) -> Self {
        Self(at)
    }

    pub const fn get(self) -> Timestamp {
        self.0
    }
}

impl FromStr for Moment {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        instant(text).map(Self).ok_or_else(|| ValueError::Moment(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        f.write_str(&text.replace(".000Z", "Z"))
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// In UTC, with milliseconds or without.
fn instant(text: &str) -> Option<Timestamp> {
    let (date, rest) = text.strip_suffix('Z')?.split_once('T')?;
    let (clock, fraction) = rest.split_once('.').unwrap_or((rest, "000"));
    let number = |digits: &str, length: usize| -> Option<u64> {
        let fits = digits.len() == length && digits.bytes().all(|b| b.is_ascii_digit());
        fits.then(|| digits.parse().ok()).flatten()
    };
    let (year, month, day) = three(date, '-')?;
    let (year, month, day) = (number(year, 4)?, number(month, 2)?, number(day, 2)?);
    let (hour, minute, second) = three(clock, ':')?;
    let (hour, minute, second) = (number(hour, 2)?, number(minute, 2)?, number(second, 2)?);
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let longest = match month {
        2 => 28 + u64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year < 1970 || day == 0 || day > longest || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days before the first of March of that year, counted from the year 0; March first puts the leap day last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    // 719 468 of them lie before 1970.
    let seconds = (days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(Timestamp::from_seconds(seconds) + Duration::from_millis(number(fraction, 3)?))
}

fn three(text: &str, between: char) -> Option<(&str, &str, &str)> {
    let (one, rest) = text.split_once(between)?;
    let (two, three) = rest.split_once(between)?;
    Some((one, two, three))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_as_it_was_read() {
        for text in ["2027-01-31T12:00:00Z", "2028-02-29T23:59:59Z", "2027-01-31T12:00:00.250Z"] {
            assert_eq!(text.parse::<Moment>().unwrap().to_string(), text);
        }
        for text in [
            "2027-01-31",
            "2027-02-29T00:00:00Z",
            "2027-01-31T12:00:00+01:00",
            "2027-01-31T24:00:00Z",
            "soon",
            "",
        ] {
            let error = text.parse::<Moment>().unwrap_err().to_string();
            assert!(error.contains("2027-01-31T12:00:00Z"), "{text}: {error}");
        }
    }
}
