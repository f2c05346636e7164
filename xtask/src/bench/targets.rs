// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The targets that the project set itself, held against a report. Information: nothing fails by them.

use super::markdown::{interval, number};
use super::results::{FLOOR, Measure, OURS, Point, Report};
use super::stats::median;

/// A target and what was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What is aimed at.
    pub target: &'static str,
    /// What was measured.
    pub found: String,
    /// Whether the median keeps to it.
    pub met: bool,
}

/// The targets that the report has measures for.
pub fn check(report: &Report) -> Vec<Verdict> {
    let to_floor = |id, target, is_met: fn(f64) -> bool| {
        let ratio = report.find(id)?.point()?.ratio(OURS, FLOOR)?;
        Some(Verdict {
            target,
            found: interval(&ratio),
            met: is_met(ratio.median),
        })
    };
    let at_most = |id, target, most: f64| {
        let samples = report.find(id)?.point()?.samples(OURS)?;
        let found = median(samples);
        Some(Verdict {
            target,
            found: number(found),
            met: found <= most,
        })
    };
    [
        to_floor(
            "start-wall",
            "exec to exit, wall: at most 1.25 × floor",
            |r| r <= 1.25,
        ),
        to_floor("start-cpu", "exec to exit, CPU: at most 2 × floor", |r| {
            r <= 2.0
        }),
        flat(report.find("memory-wall")),
        to_floor(
            "exits-port",
            "port exits: at least 0.98 of a bare loop",
            |r| r >= 0.98,
        ),
        to_floor(
            "exits-hypercall",
            "hypercalls by port: at least 0.97 of a bare port exit",
            |r| r >= 0.97,
        ),
        at_most(
            "idle-rss",
            "idle VM: at most 3 MB resident without guest pages",
            3.0,
        ),
        at_most(
            "idle-dirty",
            "idle VM: at most 0.3 MB private and dirty",
            0.3,
        ),
        boot(
            report.find("boot"),
            "Debian's vmlinux to power-off, the same command line: at most 0.8 × the better of Firecracker and Cloud Hypervisor",
        ),
        boot(
            report.find("boot-bzimage"),
            "Debian's bzImage to power-off, the same command line: at most 0.8 ×",
        ),
        boot(
            report.find("boot-own"),
            "Debian's vmlinux to power-off, each VMM's own command line: at most 0.8 ×",
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// How much the slowest size of memory takes beside the fastest.
fn flat(growth: Option<&Measure>) -> Option<Verdict> {
    let medians = |point: &Point| point.samples(OURS).map(median);
    let all: Vec<f64> = growth?.points.iter().filter_map(medians).collect();
    let fastest = all.iter().copied().reduce(f64::min)?;
    let slowest = all.iter().copied().reduce(f64::max)?;
    let spread = slowest / fastest - 1.0;
    Some(Verdict {
        target: "flat within 10 % from 32 MiB to 16 GiB",
        found: format!("{:.0} %", spread * 100.0),
        met: spread <= 0.1,
    })
}

/// A stock kernel beside the better one of the peers.
fn boot(boot: Option<&Measure>, target: &'static str) -> Option<Verdict> {
    let point = boot?.point()?;
    let ours = median(point.samples(OURS)?);
    let peers = ["firecracker", "cloud-hypervisor"];
    let best = peers
        .into_iter()
        .filter_map(|peer| Some(median(point.samples(peer)?)))
        .reduce(f64::min)?;
    Some(Verdict {
        target,
        found: format!("{:.2}", ours / best),
        met: ours <= 0.8 * best,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(id: &str, samples: &[(Option<f64>, &str, f64)]) -> Measure {
        let mut measure = Measure::new(id, id, "ms", None);
        for (x, subject, sample) in samples {
            measure.push(*x, subject, *sample);
        }
        measure
    }

    fn only(measure: Measure) -> Verdict {
        let report = Report {
            measures: vec![measure],
            ..Report::default()
        };
        let verdicts = check(&report);
        assert_eq!(verdicts.len(), 1);
        verdicts[0].clone()
    }

    #[test]
    fn ratios_to_the_floor() {
        let start = |ours| measure("start-wall", &[(None, OURS, ours), (None, FLOOR, 10.0)]);
        assert!(only(start(12.5)).met);
        assert!(!only(start(12.6)).met);
        let exits = |ours| measure("exits-port", &[(None, OURS, ours), (None, FLOOR, 100.0)]);
        assert!(only(exits(98.0)).met);
        assert!(!only(exits(97.0)).met);
    }

    #[test]
    fn flatness_is_between_extremes() {
        let growth = |most| {
            let at = |x, y| (Some(x), OURS, y);
            measure(
                "memory-wall",
                &[at(32.0, 10.0), at(64.0, most), at(128.0, 10.2)],
            )
        };
        assert!(only(growth(10.9)).met);
        assert_eq!(only(growth(11.5)).found, "15 %");
    }

    #[test]
    fn boots_compare_with_the_better_peer() {
        let boot = only(measure(
            "boot",
            &[
                (None, OURS, 8.0),
                (None, "firecracker", 10.0),
                (None, "cloud-hypervisor", 9.0),
            ],
        ));
        assert_eq!((boot.found.as_str(), boot.met), ("0.89", false));
    }

    #[test]
    fn footprints_are_absolute() {
        assert!(only(measure("idle-rss", &[(None, OURS, 2.9)])).met);
        assert!(!only(measure("idle-dirty", &[(None, OURS, 0.4)])).met);
        assert!(check(&Report::default()).is_empty());
    }
}
