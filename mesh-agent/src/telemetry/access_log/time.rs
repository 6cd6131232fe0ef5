//! Moments in UTC, as strftime(3) writes them.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::model::access_log::{TimeFormat, TimePart};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

/// A moment by the calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Civil {
    epoch: u64,
    nanos: u32,
    year: i64,
    month: u32,
    day: u32,
    hour: u64,
    minute: u64,
    second: u64,
    /// 0 is Sunday.
    weekday: usize,
    /// 1 is the first of January.
    day_of_year: u32,
}

impl Civil {
    fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let epoch = since.as_secs();
        let days = (epoch / 86_400) as i64;
        // Days since 1 March of year 0 in eras of 400 years; leap days come last that way.
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let of_era = shifted.rem_euclid(146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * of_year + 2) / 153;
        let day = (of_year - (153 * shifted_month + 2) / 5 + 1) as u32;
        let month = (if shifted_month < 10 {
            shifted_month + 3
        } else {
            shifted_month - 9
        }) as u32;
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        const BEFORE: [u32; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let day_of_year = BEFORE[month as usize - 1] + day + u32::from(leap && month > 2);
        Self {
            epoch,
            nanos: since.subsec_nanos(),
            year,
            month,
            day,
            hour: epoch / 3600 % 24,
            minute: epoch / 60 % 60,
            second: epoch % 60,
            weekday: (days + 4).rem_euclid(7) as usize,
            day_of_year,
        }
    }

    fn iso(&self, out: &mut Vec<u8>) {
        let _ = write!(
            out,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            self.year,
            self.month,
            self.day,
            self.hour,
            self.minute,
            self.second,
            self.nanos / 1_000_000
        );
    }

    fn fraction(&self, digits: u8, out: &mut Vec<u8>) {
        let digits = usize::from(digits);
        let _ = write!(
            out,
            "{:0digits$}",
            self.nanos / 10u32.pow(9 - digits as u32)
        );
    }

    fn strftime(&self, conversion: char, out: &mut Vec<u8>) {
        let hour12 = match self.hour % 12 {
            0 => 12,
            hour => hour,
        };
        let month = MONTHS[self.month as usize - 1];
        let weekday = DAYS[self.weekday];
        let half = if self.hour < 12 { "AM" } else { "PM" };
        // Writing to a vector cannot fail.
        let _ = match conversion {
            'Y' => write!(out, "{}", self.year),
            'C' => write!(out, "{:02}", self.year / 100),
            'y' => write!(out, "{:02}", self.year % 100),
            'm' => write!(out, "{:02}", self.month),
            'd' => write!(out, "{:02}", self.day),
            'e' => write!(out, "{:2}", self.day),
            'H' => write!(out, "{:02}", self.hour),
            'k' => write!(out, "{:2}", self.hour),
            'I' => write!(out, "{hour12:02}"),
            'l' => write!(out, "{hour12:2}"),
            'M' => write!(out, "{:02}", self.minute),
            'S' => write!(out, "{:02}", self.second),
            'p' => out.write_all(half.as_bytes()),
            'z' => out.write_all(b"+0000"),
            'Z' => out.write_all(b"UTC"),
            's' => write!(out, "{}", self.epoch),
            'F' => write!(out, "{}-{:02}-{:02}", self.year, self.month, self.day),
            'D' => write!(
                out,
                "{:02}/{:02}/{:02}",
                self.month,
                self.day,
                self.year % 100
            ),
            'T' => write!(
                out,
                "{:02}:{:02}:{:02}",
                self.hour, self.minute, self.second
            ),
            'R' => write!(out, "{:02}:{:02}", self.hour, self.minute),
            'j' => write!(out, "{:03}", self.day_of_year),
            'b' | 'h' => out.write_all(&month.as_bytes()[..3]),
            'B' => out.write_all(month.as_bytes()),
            'a' => out.write_all(&weekday.as_bytes()[..3]),
            'A' => out.write_all(weekday.as_bytes()),
            'w' => write!(out, "{}", self.weekday),
            'u' => write!(out, "{}", (self.weekday + 6) % 7 + 1),
            'n' => out.write_all(b"\n"),
            't' => out.write_all(b"\t"),
            // The conversion of the configuration lets no other through.
            _ => Ok(()),
        };
    }
}

/// Writes a moment.
pub(super) fn write(time: SystemTime, format: &TimeFormat, out: &mut Vec<u8>) {
    let civil = Civil::of(time);
    let TimeFormat::Parts(parts) = format else {
        return civil.iso(out);
    };
    for part in parts {
        match part {
            TimePart::Text(text) => out.extend_from_slice(text.as_bytes()),
            TimePart::Strftime(conversion) => civil.strftime(*conversion, out),
            TimePart::Fraction(digits) => civil.fraction(*digits, out),
            TimePart::Seconds(digits) => {
                civil.strftime('S', out);
                out.push(b'.');
                civil.fraction(*digits, out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64, nanos: u32, format: &TimeFormat) -> String {
        let mut out = Vec::new();
        write(UNIX_EPOCH + Duration::new(seconds, nanos), format, &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn moments_are_written_by_the_calendar() {
        let iso = |seconds| at(seconds, 123_456_789, &TimeFormat::Iso);
        assert_eq!(iso(0), "1970-01-01T00:00:00.123Z");
        assert_eq!(iso(951_782_399), "2000-02-28T23:59:59.123Z");
        assert_eq!(iso(951_782_400), "2000-02-29T00:00:00.123Z");
        assert_eq!(iso(951_868_800), "2000-03-01T00:00:00.123Z");
        assert_eq!(iso(4_107_542_399), "2100-02-28T23:59:59.123Z");
        assert_eq!(iso(4_107_542_400), "2100-03-01T00:00:00.123Z");
    }

    #[test]
    fn conversions_are_those_of_strftime() {
        let part = |conversion| {
            let format = TimeFormat::Parts(vec![TimePart::Strftime(conversion)]);
            at(951_782_461, 0, &format)
        };
        let known = [
            ('A', "Tuesday"),
            ('b', "Feb"),
            ('j', "060"),
            ('D', "02/29/00"),
            ('T', "00:01:01"),
            ('I', "12"),
            ('p', "AM"),
            ('s', "951782461"),
            ('u', "2"),
            ('e', "29"),
        ];
        for (conversion, expected) in known {
            assert_eq!(part(conversion), expected, "%{conversion}");
        }
        let format = TimeFormat::Parts(vec![
            TimePart::Seconds(3),
            TimePart::Text(" ".into()),
            TimePart::Fraction(6),
        ]);
        assert_eq!(at(1, 7_000_000, &format), "01.007 007000");
    }
}
