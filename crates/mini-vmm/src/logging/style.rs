// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What log lines look like, and which modules they come from: both can change while the process runs.

use std::sync::Mutex;

use log::{Log, Metadata, Record};

use crate::sync::lock;

/// The look of log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Style {
    /// Whether lines name their level.
    pub level: bool,
    /// Whether lines name the place in the source that they come from.
    pub origin: bool,
    /// What the path of a line's module begins with. Others are left out.
    pub module: Option<String>,
}

impl Style {
    const DEFAULT: Style = Style {
        level: true,
        origin: false,
        module: None,
    };

    fn shows(&self, module: Option<&str>) -> bool {
        let wanted = self.module.as_deref().unwrap_or_default();
        module.unwrap_or_default().starts_with(wanted)
    }
}

impl Default for Style {
    fn default() -> Self {
        Style::DEFAULT
    }
}

static STYLE: Mutex<Style> = Mutex::new(Style::DEFAULT);

/// Changes the style of lines from now on.
pub fn restyle(style: Style) {
    *lock(&STYLE) = style;
}

/// The present style.
pub(super) fn style() -> Style {
    lock(&STYLE).clone()
}

/// A logger that leaves out lines of other modules. They use no budget of [`Limited`](super::Limited).
#[derive(Debug)]
pub(super) struct Selected<L>(pub L);

impl<L: Log> Log for Selected<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let is_shown = lock(&STYLE).shows(record.module_path());
        if is_shown {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_has_those_inside_of_it() {
        let all = Style::default();
        assert!(all.shows(Some("mini_vmm::api")) && all.shows(None));
        let api = Style {
            module: Some("mini_vmm::api".to_owned()),
            ..all
        };
        assert!(api.shows(Some("mini_vmm::api::routes")));
        assert!(!api.shows(Some("mini_vmm")) && !api.shows(None));
    }
}
