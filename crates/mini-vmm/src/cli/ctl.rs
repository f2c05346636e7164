// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The actions of `mini-vmm ctl`, as the command line lists them.

use std::path::Path;

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::ctl::{Action, Order, PAGES};

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

/// Checks that actions have their words, and no others.
///
/// # Errors
/// What is wrong, and the next step.
pub(super) fn check(order: &Order) -> Result<(), &'static str> {
    let is_snapshot = order.action == Action::Snapshot;
    let dir = order.dir.as_deref();
    let is_pages = dir.is_some_and(|dir| PAGES.iter().any(|which| dir == Path::new(which)));
    let has_name = matches!(order.action, Action::Add | Action::Remove | Action::Resize);
    let said = match (order.action, dir) {
        (Action::Snapshot, None) => Err("a snapshot needs a directory; name one after the action"),
        (Action::Memory, _) if !is_pages => Err("say which memory: dirty or resident"),
        (_, None) if has_name => Err("name the device after the action"),
        (Action::Snapshot | Action::Memory, _) | (_, None) => Ok(()),
        (_, Some(_)) if has_name => Ok(()),
        (_, Some(_)) => Err("this action takes no directory; leave it out"),
    };
    said?;
    let is_add = order.action == Action::Add;
    match (order.diff, order.keep_running) {
        (true, _) if !is_snapshot => Err("--diff belongs to snapshot; leave it out"),
        (_, true) if !is_snapshot => Err("--keep-running belongs to snapshot; leave it out"),
        _ if is_add != order.device.is_some() => {
            Err("add needs one of --disk and --net, and other actions need neither")
        }
        _ if order.force && order.action != Action::Remove => {
            Err("--force belongs to remove; leave it out")
        }
        _ => Ok(()),
    }
}

/// The device to add. Only one of the two is given.
pub(super) fn device(disk: Option<String>, net: Option<String>) -> Option<(&'static str, String)> {
    disk.map(|words| ("disk", words))
        .or(net.map(|words| ("net", words)))
}
