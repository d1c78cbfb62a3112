//! Sizes, durations and rates as operators write them: `1MiB`, `300s`, `4500ms`, `7d`, `100/s`. Each has one parser
//! and one printer; configuration, command line and messages use the same.

use std::time::Duration;

const SIZES: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

const DURATIONS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Why a quantity could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No digits in front.
    #[error("it must begin with a whole number")]
    NoNumber,
    /// The unit is missing or not one of these.
    #[error("its unit must be one of {0}")]
    Unit(&'static str),
    /// More than 64 bits can hold.
    #[error("it is too large")]
    TooLarge,
}

/// Reads a size in bytes: `512B`, `32KiB`, `1MiB`, `10MB`. A bare `0` needs no unit.
///
/// # Errors
/// When number or unit is missing, unknown or too large.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    quantity(text, &SIZES, "B, KiB, MiB, GiB, TiB, kB, MB, GB")
}

/// Reads a duration: `250ms`, `30s`, `5m`, `72h`, `7d`. A bare `0` needs no unit.
///
/// # Errors
/// When number or unit is missing, unknown or too large.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    quantity(text, &DURATIONS, "ms, s, m, h, d").map(Duration::from_millis)
}

/// How often something may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Events per `per`; never zero.
    pub events: u32,
    /// The span of time in which so many may happen.
    pub per: Duration,
}

/// Reads a rate: `100/s`, `600/m`, `1000/h`; `0/s` means unlimited and is `None`.
///
/// # Errors
/// When it is not a whole number, a slash and one of `s`, `m`, `h`.
pub fn parse_rate(text: &str) -> Result<Option<Rate>, UnitError> {
    const UNITS: &str = "/s, /m, /h";
    let (number, unit) = text.split_once('/').ok_or(UnitError::Unit(UNITS))?;
    let per = match unit {
        "s" => Duration::from_secs(1),
        "m" => Duration::from_mins(1),
        "h" => Duration::from_hours(1),
        _ => return Err(UnitError::Unit(UNITS)),
    };
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(UnitError::NoNumber);
    }
    let events: u32 = number.parse().map_err(|_| UnitError::TooLarge)?;
    Ok((events > 0).then_some(Rate { events, per }))
}

fn quantity(text: &str, units: &[(&str, u64)], names: &'static str) -> Result<u64, UnitError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(UnitError::NoNumber);
    }
    let number: u64 = number.parse().map_err(|_| UnitError::TooLarge)?;
    if number == 0 && unit.is_empty() {
        return Ok(0);
    }
    let (_, factor) = units.iter().find(|(name, _)| *name == unit).ok_or(UnitError::Unit(names))?;
    number.checked_mul(*factor).ok_or(UnitError::TooLarge)
}

/// Prints a size as [`parse_size`] reads it, in the largest binary unit that divides it.
pub fn format_size(bytes: u64) -> String {
    for (unit, factor) in [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= factor && bytes.is_multiple_of(factor) {
            return format!("{}{unit}", bytes / factor);
        }
    }
    format!("{bytes}B")
}

/// Prints a duration as [`parse_duration`] reads it, in the largest unit that divides it; below a millisecond is cut.
pub fn format_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    for (unit, factor) in [("d", 86_400_000u128), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if milliseconds >= factor && milliseconds.is_multiple_of(factor) {
            return format!("{}{unit}", milliseconds / factor);
        }
    }
    format!("{milliseconds}ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let check = |text, expected| assert_eq!(parse_size(text), expected, "{text}");
        check("1MiB", Ok(1_048_576));
        check("2KiB", Ok(2_048));
        check("1GiB", Ok(1_073_741_824));
        check("1TiB", Ok(1_099_511_627_776));
        check("3MB", Ok(3_000_000));
        check("3GB", Ok(3_000_000_000));
        check("0", Ok(0));
        check("512B", Ok(512));
        check("10kB", Ok(10_000));
        check("", Err(UnitError::NoNumber));
        check("MiB", Err(UnitError::NoNumber));
        check("-1MiB", Err(UnitError::NoNumber));
        check("1", Err(UnitError::Unit("B, KiB, MiB, GiB, TiB, kB, MB, GB")));
        check("1 MiB", Err(UnitError::Unit("B, KiB, MiB, GiB, TiB, kB, MB, GB")));
        check("18446744073709551615KiB", Err(UnitError::TooLarge));
        check("99999999999999999999B", Err(UnitError::TooLarge));
    }

    #[test]
    fn durations() {
        let check = |text, expected| assert_eq!(parse_duration(text), expected, "{text}");
        check("300s", Ok(Duration::from_secs(300)));
        check("4500ms", Ok(Duration::from_millis(4_500)));
        check("72h", Ok(Duration::from_hours(72)));
        check("7d", Ok(Duration::from_hours(168)));
        check("5min", Ok(Duration::from_secs(300)));
        check("1.5s", Err(UnitError::Unit("ms, s, m, h, d")));
        check("s", Err(UnitError::NoNumber));
    }

    #[test]
    fn rates() {
        let rate = |events, per| Ok(Some(Rate { events, per: Duration::from_secs(per) }));
        assert_eq!(parse_rate("100/s"), rate(100, 1));
        assert_eq!(parse_rate("600/m"), rate(600, 60));
        assert_eq!(parse_rate("5/h"), rate(5, 3_600));
        assert_eq!(parse_rate("0/s"), Ok(None));
        assert_eq!(parse_rate("+1/s"), Err(UnitError::NoNumber));
        assert_eq!(parse_rate("100"), Err(UnitError::Unit("/s, /m, /h")));
    }

    #[test]
    fn the_largest_unit_that_divides_is_printed() {
        for (bytes, text) in
            [(0, "0B"), (1_023, "1023B"), (1 << 10, "1KiB"), (1_536 << 10, "1536KiB"), (5 << 40, "5TiB")]
        {
            assert_eq!(format_size(bytes), text);
        }
        for (milliseconds, text) in
            [(0, "0ms"), (1_500, "1500ms"), (90_000, "90s"), (7_200_000, "2h"), (172_800_000, "2d")]
        {
            assert_eq!(format_duration(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn what_is_printed_can_be_read() {
        for bytes in [0, 1, 1_000, 1 << 10, 1 << 20, (1 << 20) + 1, 5 << 30] {
            assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
        for milliseconds in [0, 1, 1_500, 60_000, 3_600_000, 604_800_000] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
