//! Kubernetes quantities (`100m`, `1.5Gi`, `2e3`), exact: no floating point.
//!
//! Source: `k8s.io/apimachinery/pkg/api/resource`. The smallest step is a nano; what is finer is rounded away from zero.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

/// Nanos in one unit.
const NANO: i128 = 1_000_000_000;

/// The largest magnitude that Kubernetes represents; larger ones are capped to it.
const MAX_NANOS: i128 = i64::MAX as i128 * NANO;

/// An amount of something (CPU, bytes), and the family of suffixes it was written in.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// The family of suffixes that a quantity is written with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    /// `m`, `k`, `M`, …: powers of 1000.
    Decimal,
    /// `Ki`, `Mi`, …: powers of 1024.
    Binary,
    /// `e3`, `e6`, …
    Exponent,
}

/// Not a quantity.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct QuantityError;

const DECIMAL_SUFFIXES: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

const BINARY_SUFFIXES: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl Quantity {
    /// Reads a quantity from a string or a number.
    pub fn from_json(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(QuantityError),
        }
    }

    /// Makes a quantity of billionths, as CPU is measured.
    pub fn from_nanos(nanos: i64) -> Self {
        Self {
            nanos: nanos.into(),
            format: Format::Decimal,
        }
    }

    /// Makes a quantity of thousandths, as CPU is counted.
    pub fn from_millis(millis: i64) -> Self {
        Self {
            nanos: i128::from(millis) * (NANO / 1000),
            format: Format::Decimal,
        }
    }

    /// Makes a quantity of bytes, written in powers of 1024.
    pub fn from_bytes(bytes: i64) -> Self {
        Self {
            nanos: i128::from(bytes) * NANO,
            format: Format::Binary,
        }
    }

    /// Returns billionths; capped to what fits.
    pub fn nanos(self) -> i64 {
        saturate(self.nanos)
    }

    /// Returns thousandths, rounded up; capped to what fits.
    pub fn millis(self) -> i64 {
        saturate(div_ceil(self.nanos, NANO / 1000))
    }

    /// Returns whole units (bytes), rounded up.
    pub fn value(self) -> i64 {
        saturate(div_ceil(self.nanos, NANO))
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }
}

fn saturate(value: i128) -> i64 {
    value.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// Divides, rounding towards positive infinity.
fn div_ceil(value: i128, divisor: i128) -> i128 {
    value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0)
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = unsigned
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err(QuantityError);
        }
        let (format, binary_power, exponent) = suffix_of(suffix)?;

        // The digits as an integer, with the decimal point moved behind them.
        let mut scale = exponent
            .saturating_sub(i32::try_from(fraction.len()).unwrap_or(i32::MAX))
            .saturating_add(9);
        let mut nanos: i128 = 1024i128.pow(binary_power);
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        // Trailing zeros only widen the number; 0 stays 0.
        let significant = digits.trim_end_matches('0');
        scale = scale.saturating_add(i32::try_from(digits.len() - significant.len()).unwrap_or(i32::MAX));
        if significant.is_empty() {
            return Ok(Self { nanos: 0, format });
        }
        // 2^60 (Ei) times 19 digits fits 127 bits. More digits: what they say beyond is below a nano or above the cap.
        let (kept, dropped) = significant.split_at(significant.len().min(19));
        scale = scale.saturating_add(i32::try_from(dropped.len()).unwrap_or(i32::MAX));
        nanos *= kept.parse::<i128>().map_err(|_| QuantityError)?;
        let mut inexact = !dropped.is_empty();
        while scale > 0 && nanos <= MAX_NANOS {
            nanos *= 10;
            scale -= 1;
        }
        while scale < 0 && nanos > 0 {
            inexact |= nanos % 10 != 0;
            nanos /= 10;
            scale += 1;
        }
        nanos = (nanos + i128::from(inexact)).min(MAX_NANOS);
        Ok(Self {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }
}

/// Returns the family, the power of 1024 and the power of 10 of a suffix.
fn suffix_of(suffix: &str) -> Result<(Format, u32, i32), QuantityError> {
    if let Some((_, exponent)) = DECIMAL_SUFFIXES.iter().find(|(name, _)| *name == suffix) {
        return Ok((Format::Decimal, 0, *exponent));
    }
    if let Some(index) = BINARY_SUFFIXES.iter().position(|name| *name == suffix) {
        return Ok((Format::Binary, index as u32 + 1, 0));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError)?;
    let exponent = exponent.parse().map_err(|_| QuantityError)?;
    Ok((Format::Exponent, 0, exponent))
}

impl fmt::Display for Quantity {
    /// Writes the canonical form: no fraction, the largest suffix that loses nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.nanos;
        if nanos == 0 {
            return f.write_str("0");
        }
        // Below 1024, powers of 1024 have nothing to say.
        if self.format == Format::Binary && nanos.abs() >= 1024 * NANO {
            let away_from_zero = div_ceil(nanos.abs(), NANO);
            let mut value = if nanos < 0 {
                -away_from_zero
            } else {
                away_from_zero
            };
            let mut suffix = "";
            for next in BINARY_SUFFIXES {
                if value % 1024 != 0 {
                    break;
                }
                value /= 1024;
                suffix = next;
            }
            return write!(f, "{value}{suffix}");
        }
        let mut value = nanos;
        let mut step = 0;
        while value % 1000 == 0 && step + 1 < DECIMAL_SUFFIXES.len() {
            value /= 1000;
            step += 1;
        }
        let (suffix, exponent) = DECIMAL_SUFFIXES[step];
        match self.format {
            Format::Exponent if exponent != 0 => write!(f, "{value}e{exponent}"),
            Format::Exponent | Format::Decimal | Format::Binary => write!(f, "{value}{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_forms_are_kubernetes() {
        for (text, canonical) in [
            ("0", "0"),
            ("0Gi", "0"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1000m", "1"),
            ("1.5", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("512", "512"),
            ("0.5Ki", "512"),
            ("1Ki", "1Ki"),
            ("1000", "1k"),
            ("1000000", "1M"),
            ("1e3", "1e3"),
            ("12E6", "12e6"),
            ("1E", "1E"),
            ("1e0", "1"),
            ("-1.5", "-1500m"),
            ("+2", "2"),
            (".5", "500m"),
            ("5.", "5"),
            ("0.0000000001", "1n"),
            ("1.3Ki", "1332"),
            ("3Ei", "3Ei"),
            ("9223372036854775807", "9223372036854775807"),
            ("99999999999999999999", "9223372036854775807"),
            ("1e99999999", "9223372036854775807"),
            ("1e-99999999", "1e-9"),
            ("100k", "100k"),
            ("007", "7"),
        ] {
            let quantity: Quantity = text.parse().unwrap_or_else(|_| panic!("{text}"));
            assert_eq!(quantity.to_string(), canonical, "{text}");
        }
        for text in [
            "", ".", "-", "m", "1.2.3", "1 Gi", "1gi", "1mi", "1K", "ten", "1e", "1e1.5", "--1", "1Kii",
            "0x10",
        ] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_round_up() {
        let parse = |text: &str| text.parse::<Quantity>().unwrap();
        assert_eq!(parse("100m").millis(), 100);
        assert_eq!(parse("2").millis(), 2000);
        assert_eq!(parse("1u").millis(), 1);
        assert_eq!(parse("128Mi").value(), 134_217_728);
        assert_eq!(parse("1500m").value(), 2);
        assert_eq!(parse("-1500m").value(), -1);
        assert!(parse("1Gi") > parse("1G"));
        assert_eq!(parse("1024Mi"), parse("1Gi"));
        assert_eq!(Quantity::from_bytes(134_217_728).to_string(), "128Mi");
        assert_eq!(Quantity::from_millis(250).to_string(), "250m");
        assert_eq!(Quantity::from_json(&serde_json::json!(2)).unwrap().millis(), 2000);
        assert_eq!(
            Quantity::from_json(&serde_json::json!(0.5)).unwrap().millis(),
            500
        );
    }

    proptest! {
        #[test]
        fn canonical_form_is_a_fixed_point(text in "[+-]?[0-9]{1,12}(\\.[0-9]{0,6})?(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|e3|e-3)?") {
            let quantity: Quantity = text.parse().unwrap();
            let canonical = quantity.to_string();
            let again: Quantity = canonical.parse().unwrap();
            // In Kubernetes, too, 6.835Ki is 7000, and 7000 is 7k.
            if quantity.format != Format::Binary || canonical.ends_with('i') {
                prop_assert_eq!(&again.to_string(), &canonical);
            }
            // Powers of 1024 are written in whole units.
            if quantity.format != Format::Binary || quantity.nanos % NANO == 0 {
                prop_assert_eq!(again, quantity);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
