//! Durations as Go and Kubernetes write them: `30s`, `1m30s`, `1.5h`, `0`.

use core::{fmt, str::FromStr, time::Duration};

/// A duration that is written as Go writes it (`time.ParseDuration`), never negative.
///
/// kube has such a type as well; it panics on `99999999999999h`, and takes `-5s` for a duration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct GoDuration(
    /// The same.
    pub Duration,
);

/// A text that is no duration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected a duration such as 30s, 1m30s, 100ms or 0")]
pub struct NotADuration;

/// Units, the longest first where one begins with another.
const UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Digits of a fraction that are looked at: more are below a nanosecond in every unit but hours.
const MOST_DIGITS: usize = 12;

impl FromStr for GoDuration {
    type Err = NotADuration;

    fn from_str(text: &str) -> Result<Self, NotADuration> {
        if text == "0" {
            return Ok(Self(Duration::ZERO));
        }
        let (mut rest, mut total) = (text, 0_u64);
        loop {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(NotADuration)?;
            let (number, after) = rest.split_at(end);
            let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
            let (unit, next) = after.split_at(unit_end);
            let nanos = UNITS.iter().find(|(name, _)| *name == unit).ok_or(NotADuration)?.1;
            total =
                nanoseconds(number, nanos).and_then(|part| total.checked_add(part)).ok_or(NotADuration)?;
            if next.is_empty() {
                return Ok(Self(Duration::from_nanos(total)));
            }
            rest = next;
        }
    }
}

/// `number` units of `unit` nanoseconds each.
fn nanoseconds(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let digits = &fraction[..fraction.len().min(MOST_DIGITS)];
    let part: u64 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let scale = 10_u128.pow(u32::try_from(digits.len()).ok()?);
    let part = u64::try_from(u128::from(part) * u128::from(unit) / scale).ok()?;
    if fraction.bytes().any(|byte| !byte.is_ascii_digit()) {
        return None;
    }
    whole.checked_mul(unit)?.checked_add(part)
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, rest) = (self.0.as_secs(), self.0.subsec_nanos());
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        if self.0 < Duration::from_secs(1) {
            return match rest {
                0 => f.write_str("0s"),
                _ if rest % 1_000_000 == 0 => write!(f, "{}ms", rest / 1_000_000),
                _ => write!(f, "{rest}ns"),
            };
        }
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if hours > 0 || minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        let fraction = format!("{rest:09}");
        match fraction.trim_end_matches('0') {
            "" => write!(f, "{seconds}s"),
            digits => write!(f, "{seconds}.{digits}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::zero("0", 0, "0s")]
    #[case::zero_with_a_unit("0s", 0, "0s")]
    #[case::seconds("30s", 30_000, "30s")]
    #[case::several_units("1m30s", 90_000, "1m30s")]
    #[case::a_fraction("1.5h", 5_400_000, "1h30m0s")]
    #[case::no_whole_part(".5s", 500, "500ms")]
    #[case::milliseconds("100ms", 100, "100ms")]
    #[case::mixed("1s500ms", 1500, "1.5s")]
    #[case::any_order("1s1h", 3_601_000, "1h0m1s")]
    fn durations_are_read_and_written_as_go_does(
        #[case] text: &str,
        #[case] millis: u64,
        #[case] shown: &str,
    ) {
        let duration: GoDuration = text.parse().unwrap();
        assert_eq!(duration.0, Duration::from_millis(millis));
        assert_eq!(duration.to_string(), shown);
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "30", "-5s", "s", ".s", "1x", "1.2.3s", "1 s", "99999999999999h", "1e3s"] {
            assert_eq!(text.parse::<GoDuration>(), Err(NotADuration), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn every_duration_survives_its_text(nanos: u64) {
            let duration = GoDuration(Duration::from_nanos(nanos));
            prop_assert_eq!(duration.to_string().parse::<GoDuration>(), Ok(duration));
        }

        #[test]
        fn no_text_makes_parsing_panic(text in "[0-9.a-zµ+-]{0,24}") {
            prop_assert!(text.parse::<GoDuration>().map_or(0, |duration| duration.0.as_nanos()) <= u64::MAX.into());
        }
    }
}
