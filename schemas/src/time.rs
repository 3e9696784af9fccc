//! Timestamps and durations as text: RFC 3339 with seconds, as Kubernetes writes them, and Go's durations.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

/// Writes seconds since the Unix epoch as `2026-01-02T03:04:05Z`; what no calendar holds becomes the epoch.
pub fn to_rfc3339(unix_seconds: i64) -> String {
    Timestamp::from_second(unix_seconds)
        .unwrap_or_default()
        .to_string()
}

/// Reads a timestamp with any offset; fractions of a second are dropped.
pub fn from_rfc3339(text: &str) -> Option<i64> {
    // jiff reads more than RFC 3339, a space in place of the `T` for instance.
    let is_date_time = text.len() >= 20 && matches!(text.as_bytes()[10], b'T' | b't');
    is_date_time
        .then(|| text.parse::<Timestamp>().ok())?
        .map(Timestamp::as_second)
}

const UNITS: [(&str, u64); 8] = [
    ("h", 3_600_000_000_000),
    ("ms", 1_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ns", 1),
];

/// Reads a duration as Go writes it (`1h30m`, `1.5s`, `250ms`, `0`); none below zero.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    if text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut nanos: u64 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let (unit, scale) = UNITS.iter().find(|(unit, _)| {
            // `m` is also how `ms` begins.
            tail.strip_prefix(unit)
                .is_some_and(|rest| !rest.starts_with(char::is_alphabetic))
        })?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return None;
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        nanos = nanos.checked_add(whole.checked_mul(*scale)?)?;
        let mut place = *scale;
        for digit in fraction.bytes() {
            place /= 10;
            nanos = nanos.checked_add(place * u64::from(digit - b'0'))?;
        }
        rest = &tail[unit.len()..];
    }
    Some(Duration::from_nanos(nanos))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn timestamps_are_rfc3339() {
        assert_eq!(to_rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(to_rfc3339(1_767_323_045), "2026-01-02T03:04:05Z");
        for (text, expected) in [
            ("2026-01-02T03:04:05Z", Some(1_767_323_045)),
            ("2026-01-02T04:04:05.999+01:00", Some(1_767_323_045)),
            ("2026-01-02 03:04:05Z", None),
            ("2026-13-02T03:04:05Z", None),
            ("2026-01-02", None),
            ("", None),
            ("ääääääääääääääääääää", None),
        ] {
            assert_eq!(from_rfc3339(text), expected, "{text}");
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, millis) in [
            ("0", Some(0)),
            ("60s", Some(60_000)),
            ("1h30m", Some(5_400_000)),
            ("1.5s", Some(1500)),
            ("250ms", Some(250)),
            ("1m1ms", Some(60_001)),
            (".5s", Some(500)),
            ("1000us", Some(1)),
            ("", None),
            ("5", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
            ("1.2.3s", None),
            ("1s ", None),
            ("99999999999h", None),
        ] {
            assert_eq!(parse_duration(text), millis.map(Duration::from_millis), "{text}");
        }
    }

    proptest! {
        #[test]
        fn timestamps_round_trip(seconds in 0..253_402_300_799i64) {
            prop_assert_eq!(from_rfc3339(&to_rfc3339(seconds)), Some(seconds));
        }
    }
}
