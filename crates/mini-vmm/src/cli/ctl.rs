// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The actions of `mini-vmm ctl`, as the command line lists them.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::ctl::Action;

impl ValueEnum for Action {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [Action; Action::WORDS.len()] = {
            let mut all = [Action::Info; Action::WORDS.len()];
            let mut at = 0;
            while at < all.len() {
                all[at] = Action::WORDS[at].1;
                at += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let mut words = Action::WORDS.iter();
        let (word, _, help) = words.find(|(_, action, _)| action == self)?;
        Some(PossibleValue::new(*word).help(*help))
    }
}
