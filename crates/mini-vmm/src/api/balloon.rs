// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The balloon, as Firecracker describes it.

use serde_json::{Map, Value, json};

use super::changes::Undo;
use super::fields::{Fields, wrong};
use super::http::Fault;
use super::model::Model;
use crate::config::{BalloonSpec, VmSpec};
use crate::layout::{MIB, PAGE_SIZE};
use crate::vmm::control::{BalloonChange, BalloonReport, Command, HintOrder};

impl Model {
    /// `PUT /balloon`.
    pub(super) fn put_balloon(&mut self, fields: Fields) -> Result<(), Fault> {
        self.spec = put(&self.spec, fields)?;
        self.is_described = true;
        Ok(())
    }

    /// The balloon of the description.
    pub(super) fn balloon(&self) -> Result<&BalloonSpec, Fault> {
        let why = "the machine has no balloon; describe it before the start by PUT /balloon";
        self.spec.balloon.as_ref().ok_or_else(|| Fault::new(why))
    }

    /// The balloon of the description, if its guest tells about its memory.
    pub(super) fn balloon_with_stats(&self) -> Result<&BalloonSpec, Fault> {
        let why = "the balloon has no statistics; set stats_polling_interval_s by PUT /balloon";
        let balloon = self.balloon()?;
        (balloon.stats != 0)
            .then_some(balloon)
            .ok_or_else(|| Fault::new(why))
    }

    /// The balloon of the description, if its guest gives hints.
    pub(super) fn balloon_with_hints(&self) -> Result<&BalloonSpec, Fault> {
        let why = "the balloon has no hints; set free_page_hinting by PUT /balloon";
        let balloon = self.balloon()?;
        balloon
            .hinting
            .then_some(balloon)
            .ok_or_else(|| Fault::new(why))
    }

    /// Reads the body of `PATCH /balloon`.
    pub(super) fn read_balloon_patch(&self, mut fields: Fields) -> Result<BalloonChange, Fault> {
        let size = amount(&mut fields)?;
        fields.finish()?;
        let spec = BalloonSpec {
            size,
            ..self.balloon()?.clone()
        };
        let checked = spec.validate(self.spec.memory);
        checked.map_err(|error| wrong("amount_mib", error))?;
        Ok(BalloonChange {
            size: Some(size),
            ..BalloonChange::default()
        })
    }

    /// Reads the body of `PATCH /balloon/statistics`.
    pub(super) fn read_stats_patch(&self, mut fields: Fields) -> Result<BalloonChange, Fault> {
        let stats = interval(&mut fields)?;
        fields.finish()?;
        let stats = Fields::required("stats_polling_interval_s", stats)?;
        if (self.balloon()?.stats == 0) != (stats == 0) {
            let why =
                "statistics can't be turned on or off after the start; set them by PUT /balloon";
            return Err(wrong("stats_polling_interval_s", why));
        }
        Ok(BalloonChange {
            stats: Some(stats),
            ..BalloonChange::default()
        })
    }

    /// The command for a change, and how to undo its effect on the description.
    pub(super) fn change_balloon(&mut self, change: BalloonChange) -> (Command, Undo) {
        let before = self.spec.balloon.clone();
        if let Some(balloon) = &mut self.spec.balloon {
            change.describe(balloon);
        }
        let after = self.spec.balloon.clone();
        (
            Command::ChangeBalloon(change),
            Undo::Balloon { before, after },
        )
    }
}

/// The machine `spec` with the balloon in the body of `PUT /balloon`.
fn put(spec: &VmSpec, mut fields: Fields) -> Result<VmSpec, Fault> {
    let size = amount(&mut fields)?;
    let deflate_on_oom = fields.switch("deflate_on_oom")?;
    let stats = interval(&mut fields)?;
    let hinting = fields.switch("free_page_hinting")?;
    let reporting = fields.switch("free_page_reporting")?;
    fields.finish()?;
    let balloon = BalloonSpec {
        size,
        deflate_on_oom: Fields::required("deflate_on_oom", deflate_on_oom)?,
        stats: stats.unwrap_or(0),
        reporting: reporting.unwrap_or(false),
        hinting: hinting.unwrap_or(false),
        iothread: None,
    };
    // The memory may still change. The start checks that, too.
    let spec = VmSpec {
        balloon: Some(balloon),
        ..spec.clone()
    };
    let checked = spec.check_balloon();
    checked.map_err(|error| wrong("amount_mib", error))?;
    Ok(spec)
}

/// `amount_mib`, in bytes.
fn amount(fields: &mut Fields) -> Result<u64, Fault> {
    let amount = fields.number("amount_mib")?;
    let amount = Fields::required("amount_mib", amount)?;
    // More is too much for any machine.
    Ok(amount.saturating_mul(MIB).min(u64::MAX / MIB * MIB))
}

fn interval(fields: &mut Fields) -> Result<Option<u32>, Fault> {
    let field = "stats_polling_interval_s";
    let seconds = fields.number(field)?;
    let fits = |seconds| u32::try_from(seconds).ok();
    let why = || {
        wrong(
            field,
            format_args!(
                "it is longer than any machine runs; use at most {}",
                u32::MAX
            ),
        )
    };
    seconds
        .map(|seconds| fits(seconds).ok_or_else(why))
        .transpose()
}

/// Reads the body of `PATCH /balloon/hinting/start`, which may be missing.
pub(super) fn start(body: &[u8]) -> Result<BalloonChange, Fault> {
    let acknowledge = if body.is_empty() {
        None
    } else {
        let mut fields = Fields::parse(body)?;
        let acknowledge = fields.switch("acknowledge_on_stop")?;
        fields.finish()?;
        acknowledge
    };
    let acknowledge = acknowledge.unwrap_or(true);
    Ok(hint(HintOrder::Start { acknowledge }))
}

/// Reads the body of `PATCH /balloon/hinting/stop`, which may be missing.
pub(super) fn stop(body: &[u8]) -> Result<BalloonChange, Fault> {
    if !body.is_empty() {
        Fields::parse(body)?.finish()?;
    }
    Ok(hint(HintOrder::Stop))
}

fn hint(order: HintOrder) -> BalloonChange {
    BalloonChange {
        hints: Some(order),
        ..BalloonChange::default()
    }
}

/// As in `GET /balloon` and `GET /vm/config`.
pub(super) fn json(balloon: &BalloonSpec) -> Value {
    json!({
        "amount_mib": balloon.size / MIB,
        "deflate_on_oom": balloon.deflate_on_oom,
        "stats_polling_interval_s": balloon.stats,
        "free_page_hinting": balloon.hinting,
        "free_page_reporting": balloon.reporting,
    })
}

/// `GET /balloon/statistics` or `GET /balloon/hinting/status`.
pub(super) fn report(report: &BalloonReport) -> Value {
    let mut all = Map::new();
    let mut say = |name: &str, value: u64| all.insert(name.to_owned(), value.into());
    match report {
        BalloonReport::Statistics {
            target,
            actual,
            stats,
        } => {
            let [target, actual] = [*target, *actual].map(u64::from);
            say("target_pages", target);
            say("actual_pages", actual);
            say("target_mib", target * PAGE_SIZE / MIB);
            say("actual_mib", actual * PAGE_SIZE / MIB);
            for (name, value) in stats.iter() {
                say(name, value);
            }
        }
        BalloonReport::Hinting(hinting) => {
            say("host_cmd", hinting.host_command.into());
            if let Some(command) = hinting.guest_command {
                say("guest_cmd", command.into());
            }
        }
    }
    all.into()
}
