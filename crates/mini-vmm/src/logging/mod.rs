// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The output on standard error: log lines and errors, one line each.

mod limit;
mod style;
mod target;

use std::error::Error;
use std::io::Write;

use env_logger::{Builder, Env, Target};
use log::{Level, LevelFilter};

pub(crate) use self::limit::Budget;
pub use self::limit::Limited;
use self::style::{Selected, style};
pub use self::style::{Style, restyle};
use self::target::Sink;
pub use self::target::{redirect, set_level};
use crate::console::{line_end, line_start};
use crate::text::{one_line, shorten};

/// The environment variable that selects log lines by module, in env_logger's syntax.
pub const LOG_VARIABLE: &str = "MINI_VMM_LOG";

/// The most characters of an error message.
const MAX_SENTENCE: usize = 2000;

/// Starts logging to standard error, or where [`redirect`] says: warnings, and more with each `-v`. The environment variable [`LOG_VARIABLE`]
/// overrides both, and limits what [`set_level`] can show. A guest can't flood the log, see [`Limited`]. A second call does nothing.
pub fn init(verbosity: u8) {
    let level = match verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let by_variable = std::env::var_os(LOG_VARIABLE).is_some();
    let mut builder = Builder::new();
    builder
        .filter_level(if by_variable {
            level
        } else {
            LevelFilter::Trace
        })
        .parse_env(Env::new().filter(LOG_VARIABLE))
        .target(Target::Pipe(Box::new(Sink)))
        .format(|line, record| {
            let text = format_record(record, &style());
            match target::is_redirected() {
                true => writeln!(line, "{text}"),
                false => write!(line, "{}{text}{}", line_start(), line_end()),
            }
        });
    let logger = builder.build();
    // Without the variable, this alone decides, and can change.
    let filter = if by_variable { logger.filter() } else { level };
    if log::set_boxed_logger(Box::new(Selected(Limited::new(logger)))).is_ok() {
        log::set_max_level(filter);
    }
}

/// Formats one log line without its newline. Debug and trace lines name their module.
fn format_record(record: &log::Record<'_>, style: &Style) -> String {
    let mut line = String::from("mini-vmm: ");
    if style.level {
        line.push_str(match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "info: ",
            Level::Debug => "debug: ",
            Level::Trace => "trace: ",
        });
    }
    if style.origin {
        let (file, number) = (record.file().unwrap_or("?"), record.line().unwrap_or(0));
        line.push_str(&format!("{file}:{number}: "));
    }
    if record.level() >= Level::Debug {
        line.push_str(&format!("{}: ", record.target()));
    }
    line.push_str(&one_line(&record.args().to_string()));
    line
}

/// `error` and its causes as one line, without repetition, joined by colons. If it is too long, its middle is left out.
///
/// # Example
/// ```
/// use mini_vmm::logging::sentence;
/// assert_eq!(sentence(&std::io::Error::other("a\nb")), "a\\nb");
/// ```
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    shorten(&one_line(&text), MAX_SENTENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Chain {
        #[error("no room: {0}")]
        Shown(#[source] Box<Chain>),
        #[error("can't write {0:?}")]
        Hidden(&'static str, #[source] Box<Chain>),
        #[error("disk\x1b[31m full\n")]
        End,
    }

    #[test]
    fn sentences_say_each_cause_once_on_one_line() {
        let end = || Box::new(Chain::End);
        let shown = Box::new(Chain::Shown(end()));
        assert_eq!(
            sentence(&Chain::Hidden("a", shown)),
            "can't write \"a\": no room: disk\\u{1b}[31m full\\n"
        );
        assert_eq!(
            sentence(&Chain::Hidden("a", end())),
            "can't write \"a\": disk\\u{1b}[31m full\\n"
        );
    }

    #[test]
    fn sentences_end() {
        let long = std::io::Error::other(format!("{}; rename it", "é".repeat(1 << 20)));
        let line = sentence(&long);
        assert_eq!(line.chars().count(), MAX_SENTENCE + 1);
        assert!(
            line.starts_with("é") && line.ends_with("é; rename it"),
            "{line}"
        );
    }

    #[test]
    fn records_name_their_level() {
        let line = |level, style: &Style| {
            let args = format_args!("a\rb");
            let mut record = log::Record::builder();
            record
                .level(level)
                .target("t")
                .file(Some("f.rs"))
                .line(Some(7));
            format_record(&record.args(args).build(), style)
        };
        let usual = Style::default();
        assert_eq!(line(Level::Warn, &usual), "mini-vmm: warning: a\\rb");
        assert_eq!(line(Level::Trace, &usual), "mini-vmm: trace: t: a\\rb");
        let other = Style {
            level: false,
            origin: true,
            ..usual
        };
        assert_eq!(line(Level::Warn, &other), "mini-vmm: f.rs:7: a\\rb");
    }
}
