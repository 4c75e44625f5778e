//! [`DateTime`]: the time that a template may ask for.

use std::fmt::Write;

const SECONDS_PER_DAY: i64 = 86_400;
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
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

/// A day of the Gregorian calendar and a time on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DateTime {
    year: i64,
    /// From 0.
    month: usize,
    /// From 1.
    day: i64,
    /// From 0, of the year.
    day_of_year: i64,
    /// 0 is Sunday.
    weekday: usize,
    second_of_day: i64,
}

impl DateTime {
    /// The time in UTC so many seconds after 1970 began.
    ///
    /// Source: Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    pub fn from_unix(seconds: i64) -> Self {
        // 400 years always have as many days. They begin in March here, so that a leap day is the last of a year.
        const ERA_DAYS: i64 = 146_097;
        let (days, second_of_day) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
        let from_march = days + 719_468;
        let (era, day_of_era) = (from_march.div_euclid(ERA_DAYS), from_march.rem_euclid(ERA_DAYS));
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_march_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_march_year + 2) / 153;
        let day = day_of_march_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 2 } else { march_month - 10 };
        let year = era * 400 + year_of_era + i64::from(month < 2);
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let day_of_year = match month {
            0 | 1 => day_of_march_year - 306,
            _ => day_of_march_year + 59 + i64::from(is_leap),
        };
        let index = |n: i64| usize::try_from(n).expect("a remainder is not negative");
        // 1970 began on a Thursday.
        let weekday = index((days + 4).rem_euclid(7));
        Self { year, month: index(month), day, day_of_year, weekday, second_of_day }
    }

    /// The time as C's `strftime` writes it in English; directives that it does not know stay as they are.
    pub fn format(&self, format: &str) -> String {
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            let directive = &rest[at + 1..];
            let (is_padded, name) = match directive.strip_prefix('-') {
                Some(name) => (false, name),
                None => (true, directive),
            };
            let known = name.chars().next().is_some_and(|name| self.directive(name, is_padded, &mut out));
            rest = if known { &name[1..] } else { directive };
            if !known {
                out.push('%');
            }
        }
        out.push_str(rest);
        out
    }

    /// Appends what one letter stands for; false for one that is not known.
    fn directive(&self, name: char, is_padded: bool, out: &mut String) -> bool {
        let (hour, minute, second) = (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let mut number = |n: i64, width: usize| {
            // Strings take everything.
            let _ = write!(out, "{n:0width$}", width = if is_padded { width } else { 1 });
        };
        match name {
            'Y' => number(self.year, 4),
            'y' => number(self.year.rem_euclid(100), 2),
            'm' => number(self.month as i64 + 1, 2),
            'd' => number(self.day, 2),
            'j' => number(self.day_of_year + 1, 3),
            'H' => number(hour, 2),
            'I' => number((hour + 11) % 12 + 1, 2),
            'M' => number(minute, 2),
            'S' => number(second, 2),
            'B' => out.push_str(MONTHS[self.month]),
            'b' | 'h' => out.push_str(&MONTHS[self.month][..3]),
            'A' => out.push_str(DAYS[self.weekday]),
            'a' => out.push_str(&DAYS[self.weekday][..3]),
            'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            'F' => out.push_str(&self.format("%Y-%m-%d")),
            'T' => out.push_str(&self.format("%H:%M:%S")),
            '%' => out.push('%'),
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Python's `datetime.fromtimestamp(t, timezone.utc).strftime` writes them.
    #[test]
    fn times_are_written_as_strftime_does() {
        for (seconds, want) in [
            (0, "1970-01-01 00:00:00 Thu Thursday Jan 001 12 AM 70"),
            (1_709_210_096, "2024-02-29 12:34:56 Thu Thursday Feb 060 12 PM 24"),
            (1_735_689_599, "2024-12-31 23:59:59 Tue Tuesday Dec 366 11 PM 24"),
            (951_868_800, "2000-03-01 00:00:00 Wed Wednesday Mar 061 12 AM 00"),
            (4_107_542_400, "2100-03-01 00:00:00 Mon Monday Mar 060 12 AM 00"),
            (-1, "1969-12-31 23:59:59 Wed Wednesday Dec 365 11 PM 69"),
        ] {
            assert_eq!(DateTime::from_unix(seconds).format("%F %T %a %A %b %j %I %p %y"), want);
        }
        let time = DateTime::from_unix(1_709_210_096);
        assert_eq!(time.format("%-d. %B %Y, 5%% %Q %"), "29. February 2024, 5% %Q %");
        assert_eq!(DateTime::from_unix(0).format("%-H:%-M %-j\u{e4}%\u{e4}"), "0:0 1\u{e4}%\u{e4}");
    }
}
