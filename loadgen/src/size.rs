//! The grammar of quantities on the command line: sizes, times, rates.
//!
//! Owns: text to number. Promises: a wrong text is answered with what would be right. Must not: know
//! what a quantity is for.
use std::time::Duration;

/// A size in bytes: a number alone, or with `B`, `KiB`, `MiB`, `GiB`.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("'{text}' is not a size: write 4096, 4KiB, 2MiB or 1GiB")),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor))
        .ok_or_else(|| format!("'{text}' is not a size: write 4096, 4KiB, 2MiB or 1GiB"))
}

/// A time: a number with `ms`, `s`, `m`, `h` or `d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let factor_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("'{text}' is not a time: write 500ms, 30s, 5m, 1h or 2d")),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor_ms))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("'{text}' is not a time: write 500ms, 30s, 5m, 1h or 2d"))
}

/// Messages per second: a positive number, `/s` behind it or not.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    match number.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err(format!("'{text}' is not a rate: write 500/s or 0.5/s")),
    }
}

fn split(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    text.split_at(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let table = [("0", Some(0)), ("17", Some(17)), ("4KiB", Some(4096)), ("3MiB", Some(3 << 20))];
        for (text, want) in table {
            assert_eq!(parse_size(text).ok(), want, "{text}");
        }
        for text in ["", "KiB", "4kb", "4 KiB", "-1", "99999999999999999999", "18446744073709551615KiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1d"), Ok(Duration::from_secs(86_400)));
        for text in ["", "5", "s", "1w", "1.5s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!(parse_rate("500/s"), Ok(500.0));
        assert_eq!(parse_rate("0.5"), Ok(0.5));
        for text in ["", "0", "-1/s", "inf", "nan", "5/m"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }
}
