//! Durations as operators write them: `45s`, `1m30s`, `250ms`.

use std::time::Duration;

/// Reads a duration in Go's notation with the units `h`, `m`, `s` and `ms`; a bare number is
/// seconds, as Envoy's `--drain-time-s` takes them.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not a duration; write 45s, 1m30s, 250ms or 0");
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        let after = &rest[digits..];
        let (unit, left) = [
            ("ms", Duration::from_millis(1)),
            ("s", Duration::from_secs(1)),
            ("m", Duration::from_secs(60)),
            ("h", Duration::from_secs(3600)),
        ]
        .into_iter()
        .find_map(|(name, unit)| Some((unit, after.strip_prefix(name)?)))
        .ok_or_else(wrong)?;
        total = unit
            .checked_mul(number)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(wrong)?;
        rest = left;
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_operators_write() {
        for (text, millis) in [
            ("45s", 45_000),
            ("1m30s", 90_000),
            ("250ms", 250),
            ("0", 0),
            ("0s", 0),
            ("60", 60_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_none_and_says_how() {
        for text in ["", "s", "45x", "-1s", "1.5s", "5s5", "99999999999h"] {
            let error = parse(text).expect_err(text);
            assert!(error.contains("45s"), "{error}");
        }
    }
}
