//! The event log: a digest of everything that happened, and, when somebody wants to read it, the lines.

use super::random::mix;

#[derive(Debug, Default)]
pub struct EventLog {
    digest: u64,
    events: u64,
    lines: Option<Vec<String>>,
}

impl EventLog {
    /// Keeps the lines as well: slower.
    pub fn verbose() -> Self {
        Self { lines: Some(Vec::new()), ..Self::default() }
    }

    /// Equal for two runs that did the same things at the same times.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    pub fn events(&self) -> u64 {
        self.events
    }

    pub fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }

    pub(super) fn event(&mut self, now: u64, numbers: &[u64], line: impl FnOnce() -> String) {
        self.events += 1;
        for number in std::iter::once(&now).chain(numbers) {
            self.digest = mix(self.digest ^ number.wrapping_add(0x9e37_79b9_7f4a_7c15));
        }
        if let Some(lines) = &mut self.lines {
            lines.push(line());
        }
    }
}
