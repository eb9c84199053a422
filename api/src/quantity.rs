//! Exact quantities: `500m`, `1Gi`, `1e3`.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// Why a text is not a quantity. Both texts are upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not of the form number and suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// A suffix that does not exist.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// The number cannot be read.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
}

/// Which family of suffixes a quantity was written with, and is written with again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Format {
    /// `m`, none, `k`, `M` …
    Decimal,
    /// `Ki`, `Mi` …
    Binary,
    /// `e3`, `e6` …
    Exponent,
}

/// An exact number with upstream's textual forms. Finer than a nano is rounded up (away from zero), as upstream does;
/// larger than 2^63-1 units is capped.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

const NANO: i128 = 1_000_000_000;
const MILLI: i128 = 1_000_000;
/// Upstream's largest value.
const MAX: i128 = i64::MAX as i128 * NANO;

impl Quantity {
    /// Nothing.
    pub const ZERO: Quantity = Quantity {
        nanos: 0,
        format: Format::Decimal,
    };

    /// Whole units, written with decimal suffixes.
    pub const fn from_value(value: i64) -> Self {
        Quantity {
            nanos: value as i128 * NANO,
            format: Format::Decimal,
        }
    }

    /// Thousandths, written with decimal suffixes.
    pub const fn from_milli(milli: i64) -> Self {
        Quantity {
            nanos: milli as i128 * MILLI,
            format: Format::Decimal,
        }
    }

    /// Whole units, written with binary suffixes where that is exact.
    pub const fn from_bytes(value: i64) -> Self {
        Quantity {
            nanos: value as i128 * NANO,
            format: Format::Binary,
        }
    }

    /// Whole units, rounded up.
    pub const fn value(&self) -> i128 {
        round_up(self.nanos, NANO)
    }

    /// Thousandths, rounded up.
    pub const fn as_milli(&self) -> i128 {
        round_up(self.nanos, MILLI)
    }

    /// Whether this is nothing.
    pub const fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether this is less than nothing.
    pub const fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// The sum; written as this one is, or as the other where this one is zero.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        let format = if self.is_zero() { other.format } else { self.format };
        bounded(self.nanos.checked_add(other.nanos)?).map(|nanos| Quantity { nanos, format })
    }

    /// The difference; written as this one is, or as the other where this one is zero.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        let format = if self.is_zero() { other.format } else { self.format };
        bounded(self.nanos.checked_sub(other.nanos)?).map(|nanos| Quantity { nanos, format })
    }
}

const fn bounded(nanos: i128) -> Option<i128> {
    if nanos > MAX || nanos < -MAX { None } else { Some(nanos) }
}

const fn round_up(nanos: i128, unit: i128) -> i128 {
    let whole = nanos / unit;
    if nanos % unit > 0 { whole + 1 } else { whole }
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
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            None => return Err(ParseError::Format),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        let end = unsigned
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(ParseError::Format);
        }
        let (format, scale) = suffix_scale(suffix)?;
        let magnitude = match scale {
            Scale::Ten(exponent) => decimal(whole, fraction, exponent),
            Scale::Two(exponent) => binary(whole, fraction, exponent),
        };
        let nanos = if negative { -magnitude } else { magnitude };
        Ok(Quantity { nanos, format })
    }
}

enum Scale {
    Ten(i32),
    Two(u32),
}

fn suffix_scale(suffix: &str) -> Result<(Format, Scale), ParseError> {
    let decimal = |exponent| Ok((Format::Decimal, Scale::Ten(exponent)));
    let binary = |exponent| Ok((Format::Binary, Scale::Two(exponent)));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => match suffix.strip_prefix(['e', 'E']).map(str::parse::<i32>) {
            Some(Ok(exponent)) => Ok((Format::Exponent, Scale::Ten(exponent))),
            _ if suffix.bytes().all(|b| b"eEinumkKMGTP+-0123456789".contains(&b)) => Err(ParseError::Suffix),
            _ => Err(ParseError::Format),
        },
    }
}

/// `whole.fraction × 10^exponent` in nanos, rounded up, capped.
fn decimal(whole: &str, fraction: &str, exponent: i32) -> i128 {
    // Nearly all are short and whole: one multiplication instead of one a digit.
    if fraction.is_empty() && whole.len() <= 18 && (-9..=3).contains(&exponent) {
        let digits = whole.bytes().fold(0u64, |n, b| n * 10 + u64::from(b - b'0'));
        let scale = 10u64.pow(u32::try_from(exponent + 9).unwrap_or(0));
        return (i128::from(digits) * i128::from(scale)).min(MAX);
    }
    // The digits before the point of the result in nanos: everything after them only decides the rounding.
    let shift = exponent.saturating_add(9);
    let point = i64::try_from(whole.len())
        .unwrap_or(i64::MAX)
        .saturating_add(i64::from(shift));
    let (mut nanos, mut position, mut inexact) = (0i128, 0i64, false);
    for digit in whole.bytes().chain(fraction.bytes()).map(|b| i128::from(b - b'0')) {
        if position < point {
            nanos = nanos.saturating_mul(10).saturating_add(digit);
        } else {
            inexact |= digit != 0;
        }
        position += 1;
    }
    while position < point && nanos != 0 && nanos < MAX {
        nanos = nanos.saturating_mul(10);
        position += 1;
    }
    nanos.saturating_add(i128::from(inexact)).min(MAX)
}

/// `whole.fraction × 2^exponent` in nanos, rounded up, capped.
fn binary(whole: &str, fraction: &str, exponent: u32) -> i128 {
    let mut value = whole
        .bytes()
        .fold(0i128, |n, b| n.saturating_mul(10).saturating_add(i128::from(b - b'0')));
    value = value.saturating_mul(1 << exponent).saturating_mul(NANO).min(MAX);
    // 18 digits of the fraction × 2^60 fits an i128; later digits are below a nano even of an exbi (2^60 / 10^18 ≈ 1.2).
    let kept = &fraction[..fraction.len().min(18)];
    let numerator = kept.bytes().fold(0i128, |n, b| n * 10 + i128::from(b - b'0'));
    let denominator = 10i128.pow(u32::try_from(kept.len()).unwrap_or(0));
    let lost = fraction.bytes().skip(18).any(|b| b != b'0');
    // numerator < 10^18 < 2^60, so the product with 2^60 fits; nanos come last, from quotient and remainder.
    let product = numerator << exponent;
    let (quotient, remainder) = (product / denominator, product % denominator);
    let fine = remainder * NANO;
    let rounded = fine / denominator + i128::from(fine % denominator != 0 || lost);
    value.saturating_add(quotient * NANO + rounded).min(MAX)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        if self.nanos == 0 {
            return f.write_str("0");
        }
        // Below 1024, or not whole, a binary quantity is written in decimal.
        if self.format == Format::Binary && self.nanos.abs() >= 1024 * NANO && self.nanos % NANO == 0 {
            let mut units = self.nanos / NANO;
            let mut suffix = 0;
            while units % 1024 == 0 && suffix + 1 < BINARY.len() {
                units /= 1024;
                suffix += 1;
            }
            return write!(f, "{units}{}", BINARY[suffix]);
        }
        let (mut mantissa, mut suffix) = (self.nanos, 0);
        // 128-bit division is slow; nearly everything fits 64 bits once whole units are split off.
        if mantissa % NANO == 0 {
            (mantissa, suffix) = (mantissa / NANO, 3);
        }
        if let Ok(mut small) = i64::try_from(mantissa) {
            while small % 1000 == 0 && suffix + 1 < DECIMAL.len() {
                small /= 1000;
                suffix += 1;
            }
            mantissa = small.into();
        }
        while mantissa % 1000 == 0 && suffix + 1 < DECIMAL.len() {
            mantissa /= 1000;
            suffix += 1;
        }
        match (self.format, suffix) {
            (Format::Exponent, 3) => write!(f, "{mantissa}"),
            (Format::Exponent, _) => write!(f, "{mantissa}e{}", (i64::try_from(suffix).unwrap_or(0) - 3) * 3),
            _ => write!(f, "{mantissa}{}", DECIMAL[suffix]),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_forms() {
        let cases = [
            ("0", "0"),
            ("0Gi", "0"),
            ("1024Mi", "1Gi"),
            ("0.5", "500m"),
            ("1e3", "1e3"),
            ("1000e-3", "1"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1023Ki", "1023Ki"),
            ("2048Ki", "2Mi"),
            ("-1", "-1"),
            ("+1", "1"),
            ("-1.5", "-1500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("1E", "1E"),
            ("1Ei", "1Ei"),
            ("1E3", "1e3"),
            ("12345678901234567890", "9223372036854775807"),
            ("1e6", "1e6"),
            ("1e7", "10e6"),
            ("1e-3", "1e-3"),
            ("100000", "100k"),
            ("1.25", "1250m"),
            ("0.0001", "100u"),
            ("0.1Mi", "104857600m"),
            ("1.1Ki", "1126400m"),
        ];
        for (text, canonical) in cases {
            let q: Quantity = text.parse().unwrap();
            assert_eq!(q.to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn refused() {
        for (text, error) in [
            ("", ParseError::Format),
            ("a", ParseError::Format),
            ("1x", ParseError::Format),
            ("1.1.1", ParseError::Format),
            ("--1", ParseError::Format),
            ("1 ", ParseError::Format),
            ("1mm", ParseError::Suffix),
            ("1KiB", ParseError::Format),
            ("1kk", ParseError::Suffix),
            ("1e", ParseError::Suffix),
            (".", ParseError::Format),
            ("1e3m", ParseError::Suffix),
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(error), "{text}");
        }
    }

    #[test]
    fn arithmetic() {
        let q = |t: &str| t.parse::<Quantity>().unwrap();
        assert_eq!(q("1Gi").checked_add(q("512Mi")).unwrap().to_string(), "1536Mi");
        assert_eq!(q("0").checked_add(q("1Ki")).unwrap().to_string(), "1Ki");
        assert_eq!(q("1").checked_sub(q("100m")).unwrap().to_string(), "900m");
        assert_eq!(
            (q("100m").value(), q("1.0001").as_milli(), q("-1.5").value()),
            (1, 1001, -1)
        );
        assert!(q("1Ki") > q("1k") && q("1024") == q("1Ki"));
        assert_eq!(q("9E").checked_add(q("9E")), None);
        assert_eq!(Quantity::from_bytes(1 << 30).to_string(), "1Gi");
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,24}") {
            text.parse::<Quantity>().ok();
        }

        #[test]
        fn numbers_never_panic(text in "[+-]?[0-9.]{0,45}([eEinumkKMGTP]{0,2}[-+]?[0-9]{0,12})") {
            if let Ok(q) = text.parse::<Quantity>() {
                prop_assert_eq!(q.to_string().parse::<Quantity>().unwrap().to_string(), q.to_string());
            }
        }

        #[test]
        fn canonical_is_exact(value in -1_000_000_000_000i64..1_000_000_000_000, suffix in 0..5usize) {
            let text = format!("{value}{}", ["", "m", "k", "Ki", "Mi"][suffix]);
            let q: Quantity = text.parse().unwrap();
            let again: Quantity = q.to_string().parse().unwrap();
            prop_assert_eq!(q, again);
        }

        #[test]
        fn order_is_of_numbers(a in -1_000_000i64..1_000_000, b in -1_000_000i64..1_000_000) {
            prop_assert_eq!(Quantity::from_milli(a).cmp(&Quantity::from_milli(b)), a.cmp(&b));
        }
    }
}
