//! Looking at first bytes that stay where they are: the kernel tells of them once, so whoever finds too few looks again after a
//! while, and ever later, since who stays there has to cost little.

use std::time::Duration;

/// How soon it is looked again, at first and at most.
const AGAIN_FIRST: Duration = Duration::from_millis(2);
const AGAIN_AT_MOST: Duration = Duration::from_millis(64);

/// The pauses of one connection.
pub struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(AGAIN_FIRST)
    }
}

impl Pauses {
    pub async fn next(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(AGAIN_AT_MOST);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_says_half_and_no_more_is_looked_at_ever_less_often() {
        let (began, mut pauses, mut looks) = (Instant::now(), Pauses::default(), 0);
        while began.elapsed() < Duration::from_secs(10) {
            pauses.next().await;
            looks += 1;
        }
        assert!((100..200).contains(&looks), "{looks}");
    }
}
