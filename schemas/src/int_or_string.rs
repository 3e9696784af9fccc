//! Numbers that may be percentages (`maxSurge: 25%`).

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Which way a percentage that is no whole number goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rounding {
    Up,
    Down,
}

/// Returns the percentage that text like `25%` says.
pub fn percent(text: &str) -> Option<u32> {
    let digits = text.strip_suffix('%')?;
    // `parse` takes a plus sign, Kubernetes does not.
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

/// Returns the number, or the percentage of `total`; None for text that is no percentage.
pub fn scaled(value: &IntOrString, total: i32, rounding: Rounding) -> Option<i32> {
    match value {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(text) => {
            let product = i64::from(percent(text)?) * i64::from(total);
            let scaled = match rounding {
                Rounding::Up => product.div_euclid(100) + i64::from(product.rem_euclid(100) != 0),
                Rounding::Down => product.div_euclid(100),
            };
            Some(i32::try_from(scaled).unwrap_or(i32::MAX))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_asked() {
        let text = |text: &str| IntOrString::String(text.to_owned());
        for (value, total, up, down) in [
            (IntOrString::Int(3), 10, Some(3), Some(3)),
            (text("25%"), 10, Some(3), Some(2)),
            (text("25%"), 4, Some(1), Some(1)),
            (text("0%"), 10, Some(0), Some(0)),
            (text("100%"), 7, Some(7), Some(7)),
            (text("4000000000%"), i32::MAX, Some(i32::MAX), Some(i32::MAX)),
            (text("25"), 10, None, None),
            (text("+5%"), 10, None, None),
            (text("%"), 10, None, None),
        ] {
            assert_eq!(scaled(&value, total, Rounding::Up), up, "{value:?}");
            assert_eq!(scaled(&value, total, Rounding::Down), down, "{value:?}");
        }
    }
}
