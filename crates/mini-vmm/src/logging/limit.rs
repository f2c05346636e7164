// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Limits log lines: whatever a guest does and however often it resets, the log grows slowly.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::{Level, Log, Metadata, Record};

use crate::sync::lock;

/// How long it takes until the budget allows one more line.
const REFILL: Duration = Duration::from_secs(10);

/// How many lines one place in the code may log at once.
const fn burst(level: Level) -> u32 {
    match level {
        Level::Error | Level::Warn => 10,
        // A boot logs a few dozen boot marks.
        Level::Info | Level::Debug | Level::Trace => 64,
    }
}

/// A logger that limits another one. Each place in the code that logs has a budget: 10 lines for errors and warnings,
/// 64 for other levels, and one more every ten seconds. Lines over budget are counted, and the next line says how many
/// were left out.
///
/// The budgets live as long as the logger, which means as long as the process: a reset of the guest doesn't renew them.
/// A flood at one place doesn't hide lines from others. It costs a lock and a table lookup per line, but no formatting.
///
/// # Example
/// ```
/// use mini_vmm::logging::Limited;
///
/// let mine = env_logger::Builder::new().filter_level(log::LevelFilter::Info).build();
/// log::set_max_level(mine.filter());
/// log::set_boxed_logger(Box::new(Limited::new(mine)))?;
/// # Ok::<(), log::SetLoggerError>(())
/// ```
#[derive(Debug)]
pub struct Limited<L> {
    logger: L,
    budgets: Mutex<BTreeMap<Place, Budget>>,
}

/// A file and a line in it. Their number is limited by the program. Records that were not made by the macros share one
/// place.
type Place = (Option<&'static str>, Option<u32>);

impl<L> Limited<L> {
    /// Passes lines within the budgets on to `logger`. All budgets start unused.
    pub const fn new(logger: L) -> Self {
        Limited {
            logger,
            budgets: Mutex::new(BTreeMap::new()),
        }
    }

    fn take(&self, record: &Record<'_>, now: Instant) -> Option<Line> {
        let burst = burst(record.level());
        let place = (record.file_static(), record.line());
        let mut budgets = lock(&self.budgets);
        let budget = budgets
            .entry(place)
            .or_insert_with(|| Budget::new(burst, now));
        budget.take(burst, now)
    }
}

impl<L: Log> Limited<L> {
    fn log_at(&self, record: &Record<'_>, now: Instant) {
        if !self.logger.enabled(record.metadata()) {
            return;
        }
        let text = record.args();
        let noted = |args| {
            let mut noted = Record::builder();
            noted.metadata(record.metadata().clone()).args(args);
            noted.module_path_static(record.module_path_static());
            noted.file_static(record.file_static()).line(record.line());
            self.logger.log(&noted.build());
        };
        match self.take(record, now) {
            None => {}
            Some(Line::Plain) => self.logger.log(record),
            Some(Line::Last) => noted(format_args!("{text} (more lines like this are left out)")),
            Some(Line::After(n)) => {
                noted(format_args!("{text} ({n} lines like this were left out)"))
            }
        }
    }
}

impl<L: Log> Log for Limited<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        self.log_at(record, Instant::now());
    }

    fn flush(&self) {
        self.logger.flush();
    }
}

/// A line within the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Plain,
    /// The last one of the budget.
    Last,
    /// The first one after this many that were left out.
    After(u64),
}

/// The budget of one place.
#[derive(Debug)]
pub(crate) struct Budget {
    lines: u32,
    /// The time from which refills count.
    since: Instant,
    left_out: u64,
}

impl Budget {
    /// A budget of `burst` lines, unused.
    pub(crate) const fn new(burst: u32, now: Instant) -> Self {
        Budget {
            lines: burst,
            since: now,
            left_out: 0,
        }
    }

    /// Takes a line, if there is one left.
    pub(crate) fn take(&mut self, burst: u32, now: Instant) -> Option<Line> {
        let refills = now.saturating_duration_since(self.since).as_secs() / REFILL.as_secs();
        let refills = u32::try_from(refills).unwrap_or(u32::MAX);
        self.since += REFILL * refills;
        self.lines = self.lines.saturating_add(refills).min(burst);
        if self.lines == 0 {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.lines -= 1;
        Some(match std::mem::take(&mut self.left_out) {
            0 if self.lines == 0 => Line::Last,
            0 => Line::Plain,
            left_out => Line::After(left_out),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps the records that it gets, up to level debug.
    #[derive(Default)]
    struct Kept(Mutex<Vec<String>>);

    impl Log for Kept {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.level() <= Level::Debug
        }

        fn log(&self, record: &Record<'_>) {
            let text = format!("{} {}", record.level(), record.args());
            self.0.lock().unwrap().push(text);
        }

        fn flush(&self) {}
    }

    impl Limited<Kept> {
        /// Logs one line at the given level and place.
        fn say(&self, level: Level, line: u32, now: Instant) {
            let mut record = Record::builder();
            record
                .level(level)
                .file_static(Some("file.rs"))
                .line(Some(line));
            self.log_at(&record.args(format_args!("line {line}")).build(), now);
        }

        fn kept(&self) -> Vec<String> {
            std::mem::take(&mut *self.logger.0.lock().unwrap())
        }
    }

    fn limited() -> (Limited<Kept>, Instant) {
        (Limited::new(Kept::default()), Instant::now())
    }

    #[test]
    fn a_flood_is_cut_and_counted() {
        let (limited, start) = limited();
        for (level, burst) in [(Level::Error, 10), (Level::Warn, 10), (Level::Info, 64)] {
            let line = level as u32;
            let end = start + Duration::from_millis(9_999);
            for _ in 0..5000 {
                limited.say(level, line, start);
                limited.say(level, line, end);
            }
            let kept = limited.kept();
            assert_eq!(kept.len(), burst);
            let (last, others) = kept.split_last().unwrap();
            assert!(
                others
                    .iter()
                    .all(|text| *text == format!("{level} line {line}"))
            );
            assert_eq!(
                *last,
                format!("{level} line {line} (more lines like this are left out)")
            );
            limited.say(level, line, start + REFILL);
            limited.say(level, line, start + REFILL);
            let left_out = 10_000 - burst;
            let after = format!("{level} line {line} ({left_out} lines like this were left out)");
            assert_eq!(limited.kept(), [after]);
        }
    }

    /// Like a guest that resets a hundred times a second for an hour, with a log line each time.
    #[test]
    fn an_hour_of_resets_has_a_bounded_log() {
        let (limited, start) = limited();
        let hour = 3600;
        for reset in 0..hour * 100 {
            limited.say(Level::Info, 1, start + Duration::from_millis(reset * 10));
        }
        assert_eq!(
            limited.kept().len() as u64,
            64 + (hour - 1) / REFILL.as_secs()
        );
    }

    #[test]
    fn budgets_fill_up_and_no_further() {
        let (limited, start) = limited();
        for _ in 0..20 {
            limited.say(Level::Warn, 1, start);
        }
        assert_eq!(limited.kept().len(), 10);
        let later = start + REFILL * 3;
        for _ in 0..20 {
            limited.say(Level::Warn, 1, later);
        }
        assert_eq!(limited.kept().len(), 3);
        let far = start + Duration::from_secs(u64::from(u32::MAX));
        for _ in 0..20 {
            limited.say(Level::Warn, 1, far);
        }
        assert_eq!(limited.kept().len(), 10);
        // A clock that went backwards refills nothing.
        limited.say(Level::Warn, 1, start);
        assert_eq!(limited.kept(), [] as [&str; 0]);
    }

    #[test]
    fn places_do_not_use_up_one_anothers_budget() {
        let (limited, start) = limited();
        for _ in 0..100 {
            limited.say(Level::Warn, 1, start);
        }
        limited.kept();
        limited.say(Level::Warn, 2, start);
        assert_eq!(limited.kept(), ["WARN line 2"]);
        // Nor do lines at a disabled level.
        for _ in 0..100 {
            limited.say(Level::Trace, 3, start);
        }
        limited.say(Level::Debug, 3, start);
        assert_eq!(limited.kept(), ["DEBUG line 3"]);
        assert_eq!(limited.budgets.lock().unwrap().len(), 3);
    }
}
