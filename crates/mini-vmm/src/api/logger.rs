// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The log of this process, as Firecracker's API describes it.

use std::path::{Path, PathBuf};

use log::LevelFilter;
use serde_json::{Value, json};

use super::Error;
use super::fields::{Fields, wrong};
use super::http::Fault;
use crate::logging;

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
}

impl Logger {
    /// Reads the body of `PUT /logger`.
    pub(super) fn parse(mut fields: Fields) -> Result<Self, Fault> {
        let path = fields.path("log_path")?;
        let level = fields.text("level")?;
        // Lines always have their level.
        fields.switch("show_level")?;
        let off = Value::Bool(false);
        fields.only(
            "show_log_origin",
            &off,
            "only debug lines show their module, and always do",
        )?;
        fields.only(
            "module",
            &Value::Null,
            "the variable MINI_VMM_LOG selects modules",
        )?;
        fields.finish()?;
        Ok(Logger { path, level })
    }

    /// Changes the log.
    ///
    /// # Errors
    /// [`Error::Model`]: there is no such level, or the file can't be opened. Then nothing changes.
    pub fn apply(&self) -> Result<(), Error> {
        self.set().map_err(|fault| Error::Model(fault.message))
    }

    /// As [`apply`](Self::apply), for a request.
    pub(super) fn set(&self) -> Result<(), Fault> {
        let level = self.level.as_deref().map(find).transpose()?;
        if let Some(path) = &self.path {
            open(path)?;
        }
        if let Some(level) = level {
            logging::set_level(level);
        }
        Ok(())
    }

    /// As in `GET /vm/config`.
    pub(super) fn json(&self) -> Value {
        json!({
            "log_path": self.path.as_ref().map(|path| path.to_string_lossy()),
            "level": self.level,
            "show_level": true,
            "show_log_origin": false,
            "module": null,
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
