// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Seconds since 1970 as date and time (UTC, the proleptic Gregorian calendar), and back.

/// Seconds of a day.
pub const DAY: i64 = 86_400;

/// A date with its time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTime {
    /// Such as 2026.
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

impl DateTime {
    /// The time `seconds` after the start of 1970. Years are counted in eras of 400, which are all alike.
    pub fn from_seconds(seconds: i64) -> Self {
        let (days, of_day) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // Years start in March here, so that a leap day is the last day.
        let days = days + 719_468;
        let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let is_next_year = month >= 10;
        DateTime {
            year: era * 400 + year + i64::from(is_next_year),
            month: (if is_next_year { month - 9 } else { month + 3 }) as u8,
            day: (of_year - (153 * month + 2) / 5 + 1) as u8,
            hour: (of_day / 3_600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// Seconds since the start of 1970; `None` if there is no such day or time.
    pub fn to_seconds(self) -> Option<i64> {
        let DateTime {
            year,
            month,
            day,
            hour,
            minute,
            second,
        } = self;
        if !(1..=12).contains(&month) || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let (year, month) = match month {
            3.. => (year, i64::from(month) - 3),
            _ => (year - 1, i64::from(month) + 9),
        };
        let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let of_year = (153 * month + 2) / 5 + i64::from(day) - 1;
        let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
        let of_day = i64::from(hour) * 3_600 + i64::from(minute) * 60 + i64::from(second);
        let seconds = days * DAY + of_day;
        // A day that doesn't exist converts to another date.
        (DateTime::from_seconds(seconds) == self).then_some(seconds)
    }

    /// The day of the week: 1 is Sunday.
    pub fn weekday(seconds: i64) -> u8 {
        // The first day was a Thursday.
        ((seconds.div_euclid(DAY) + 4).rem_euclid(7) + 1) as u8
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_dates() {
        let known = [
            (0, (1970, 1, 1, 0, 0, 0), 5),
            (-1, (1969, 12, 31, 23, 59, 59), 4),
            (951_782_399, (2000, 2, 28, 23, 59, 59), 2),
            (951_782_400, (2000, 2, 29, 0, 0, 0), 3),
            (1_709_210_096, (2024, 2, 29, 12, 34, 56), 5),
            (4_107_542_400, (2100, 3, 1, 0, 0, 0), 2),
        ];
        for (seconds, (year, month, day, hour, minute, second), weekday) in known {
            let date = DateTime {
                year,
                month,
                day,
                hour,
                minute,
                second,
            };
            assert_eq!(DateTime::from_seconds(seconds), date);
            assert_eq!(date.to_seconds(), Some(seconds));
            assert_eq!(DateTime::weekday(seconds), weekday);
        }
    }

    #[test]
    fn days_that_are_none_are_refused() {
        let date = DateTime::from_seconds(951_782_400);
        for bad in [
            DateTime { year: 1900, ..date },
            DateTime { month: 0, ..date },
            DateTime { month: 13, ..date },
            DateTime { day: 0, ..date },
            DateTime { day: 30, ..date },
            DateTime { hour: 24, ..date },
            DateTime { minute: 60, ..date },
            DateTime { second: 60, ..date },
        ] {
            assert_eq!(bad.to_seconds(), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn there_and_back(seconds in -400_000_000_000i64..400_000_000_000) {
            prop_assert_eq!(DateTime::from_seconds(seconds).to_seconds(), Some(seconds));
        }
    }
}
