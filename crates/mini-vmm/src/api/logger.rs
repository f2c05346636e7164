// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The log of this process, as Firecracker's API describes it.

use std::path::{Path, PathBuf};

use log::LevelFilter;
use serde_json::{Value, json};

use super::Error;
use super::fields::{Fields, wrong};
use super::http::Fault;
use crate::logging::{self, Style};

/// The levels, as Firecracker spells them. Any case will do.
const LEVELS: [(&str, LevelFilter); 7] = [
    ("Off", LevelFilter::Off),
    ("Error", LevelFilter::Error),
    ("Warning", LevelFilter::Warn),
    ("Warn", LevelFilter::Warn),
    ("Info", LevelFilter::Info),
    ("Debug", LevelFilter::Debug),
    ("Trace", LevelFilter::Trace),
];

/// What is to change about the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logger {
    /// The file or FIFO that lines are written to.
    pub path: Option<PathBuf>,
    /// The name of the level up to which lines are shown.
    pub level: Option<String>,
    /// Whether lines name their level. They do by default.
    pub show_level: Option<bool>,
    /// Whether lines name their place in the source.
    pub show_origin: Option<bool>,
    /// What the path of a line's module begins with. Others are left out.
    pub module: Option<String>,
}

impl Logger {
    /// Reads the body of `PUT /logger`.
    pub(super) fn parse(mut fields: Fields) -> Result<Self, Fault> {
        let path = fields.path("log_path")?;
        let level = fields.text("level")?;
        let show_level = fields.switch("show_level")?;
        let show_origin = fields.switch("show_log_origin")?;
        let module = fields.text("module")?;
        fields.finish()?;
        Ok(Logger {
            path,
            level,
            show_level,
            show_origin,
            module,
        })
    }

    /// What both say; `self` counts where it says something.
    pub(super) fn over(self, before: Logger) -> Logger {
        Logger {
            path: self.path.or(before.path),
            level: self.level.or(before.level),
            show_level: self.show_level.or(before.show_level),
            show_origin: self.show_origin.or(before.show_origin),
            module: self.module.or(before.module),
        }
    }

    fn style(&self) -> Style {
        let usual = Style::default();
        Style {
            level: self.show_level.unwrap_or(usual.level),
            origin: self.show_origin.unwrap_or(usual.origin),
            module: self.module.clone(),
        }
    }

    /// Changes the log.
    ///
    /// # Errors
    /// [`Error::Model`]: there is no such level, or the file can't be opened. Then nothing changes.
    pub fn apply(&self) -> Result<(), Error> {
        self.set(self).map_err(|fault| Error::Model(fault.message))
    }

    /// As [`apply`](Self::apply), for a request. `whole` also has what was said before.
    pub(super) fn set(&self, whole: &Logger) -> Result<(), Fault> {
        let level = self.level.as_deref().map(find).transpose()?;
        if let Some(path) = &self.path {
            open(path)?;
        }
        if let Some(level) = level {
            logging::set_level(level);
        }
        logging::restyle(whole.style());
        Ok(())
    }

    /// As in `GET /vm/config`.
    pub(super) fn json(&self) -> Value {
        let style = self.style();
        json!({
            "log_path": self.path.as_ref().map(|path| path.to_string_lossy()),
            "level": self.level,
            "show_level": style.level,
            "show_log_origin": style.origin,
            "module": style.module,
        })
    }
}

fn find(word: &str) -> Result<LevelFilter, Fault> {
    let known = LEVELS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(word));
    let names = LEVELS.map(|(name, _)| name).join(", ");
    known
        .map(|(_, level)| *level)
        .ok_or_else(|| wrong("level", format_args!("{word:?} is not one of {names}")))
}

fn open(path: &Path) -> Result<(), Fault> {
    logging::redirect(path).map_err(|error| {
        let what = format_args!("{path:?} can't be opened: {error}; name a file or a FIFO");
        wrong("log_path", what)
    })
}
