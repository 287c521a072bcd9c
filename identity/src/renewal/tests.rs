//! Tests of renewal: half of the lifetime, and patience that grows and ends.

use super::*;

#[test]
fn renewal_is_due_around_half_of_the_lifetime() {
    let (start, end) = (Timestamp::from_seconds(1000), Timestamp::from_seconds(2000));
    assert_eq!(renew_at(start, end, 0.0), Timestamp::from_seconds(1400));
    assert_eq!(renew_at(start, end, 0.5), Timestamp::from_seconds(1500));
    assert_eq!(renew_at(start, end, 1.0), Timestamp::from_seconds(1600));
    assert_eq!(renew_at(start, end, 7.0), Timestamp::from_seconds(1600));
    assert_eq!(renew_at(end, start, 0.5), end);
}

#[test]
fn retries_double_up_to_ten_seconds() {
    let waits: Vec<_> = (0..8).map(|failures| retry_after(failures, 0.5).as_millis()).collect();
    assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
    assert_eq!(retry_after(u32::MAX, 1.0), Duration::from_millis(12_500));
    assert_eq!(retry_after(0, 0.0), Duration::from_millis(187));
}
