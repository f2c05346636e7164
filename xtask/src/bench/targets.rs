// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The project's targets, compared with a report. They are for information: a missed target is no failure.

use super::markdown::{interval, number};
use super::results::{FLOOR, Measure, OURS, Point, Report};
use super::stats::median;

/// A target and the result.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The target, in words.
    pub target: &'static str,
    /// The result, in words.
    pub found: String,
    /// Whether the median meets it.
    pub met: bool,
}

/// The limits of a measure.
#[derive(Clone, Copy)]
enum Aim {
    /// Between these multiples of the floor.
    OfFloor(f64, f64),
    /// At most this multiple of the floor, at each position of the axis.
    MostOfFloor(f64),
    /// At most this value.
    Most(f64),
    /// The slowest position of the axis is at most this much above the fastest.
    Flat(f64),
    /// At most this multiple of the better one of the peers, at each position of the axis.
    MostOfPeers(f64),
}
use Aim::{Flat, Most, MostOfFloor, MostOfPeers, OfFloor};

/// The measures, their limits, and the targets in words.
#[rustfmt::skip]
const TARGETS: [(&str, Aim, &str); 44] = [
    ("start-wall", OfFloor(0.0, 1.25), "exec to exit, wall: at most 1.25 × floor"),
    ("start-cpu", OfFloor(0.0, 2.0), "exec to exit, CPU: at most 2 × floor"),
    ("memory-wall", Flat(0.1), "flat within 10 % from 32 MiB to 16 GiB"),
    ("exits-port", OfFloor(0.98, f64::MAX), "port exits: at least 0.98 of a bare loop"),
    ("exits-hypercall", OfFloor(0.97, f64::MAX), "hypercalls by port: at least 0.97 of a bare port exit"),
    ("idle-rss", Most(3.0), "idle VM: at most 3 MB resident without guest pages"),
    ("idle-dirty", Most(0.3), "idle VM: at most 0.3 MB private and dirty"),
    ("boot", MostOfPeers(0.8), "Debian's vmlinux to power-off, the same command line: at most 0.8 × the better of Firecracker and Cloud Hypervisor"),
    ("boot-bzimage", MostOfPeers(0.8), "Debian's bzImage to power-off, the same command line: at most 0.8 ×"),
    ("disk-random-instructions", MostOfPeers(0.8), "random reads of 4 KiB, instructions in user space: at most 0.8 × the better peer"),
    ("disk-random-calls", MostOfPeers(0.8), "the same, system calls: at most 0.8 ×"),
    ("disk-random-time", MostOfPeers(1.0), "the same, the whole path: at most 1 ×"),
    ("disk-read-instructions", MostOfPeers(0.8), "sequential reads of 1 MiB, instructions in user space: at most 0.8 ×"),
    ("disk-read-calls", MostOfPeers(0.8), "the same, system calls: at most 0.8 ×"),
    ("disk-read-time", MostOfPeers(1.0), "the same, the whole path: at most 1 ×"),
    ("disk-write-instructions", MostOfPeers(0.8), "sequential writes of 1 MiB, instructions in user space: at most 0.8 ×"),
    ("disk-write-calls", MostOfPeers(0.8), "the same, system calls: at most 0.8 ×"),
    ("disk-write-time", MostOfPeers(1.0), "the same, the whole path: at most 1 ×"),
    ("net-ping-instructions", MostOfPeers(0.8), "pings with replies, instructions in user space: at most 0.8 × the better peer"),
    ("net-ping-calls", MostOfPeers(0.8), "the same, system calls: at most 0.8 ×"),
    ("net-send-instructions", MostOfPeers(0.8), "large packets sent, instructions in user space: at most 0.8 ×"),
    ("net-send-calls", MostOfPeers(0.8), "the same, system calls: at most 0.8 ×"),
    ("vsock-out-instructions", MostOfPeers(0.8), "a stream from the guest by vsock, instructions in user space: at most 0.8 × the better peer"),
    ("vsock-out-calls", MostOfPeers(0.8), "the same, system calls: at most 0.8 ×"),
    ("vsock-in-instructions", MostOfPeers(0.8), "a stream to the guest by vsock, instructions in user space: at most 0.8 ×"),
    ("vsock-in-calls", MostOfPeers(0.8), "the same, system calls: at most 0.8 ×"),
    ("api-answer", Most(1.0), "exec to the API's first answer: at most 1 × exec to a guest"),
    ("api-start", Most(1.3), "exec to a guest that four requests start: at most 1.3 ×"),
    ("api-idle", Most(4.0), "a process that waits for requests: at most 4 MB resident"),
    ("api-storm", Most(5.0), "exits per second of CPU beside a storm of requests: at most 5 % less"),
    ("api-growth", Most(0.1), "memory is flat in the storm: at most 0.1 MB more"),
    ("restore-wall", MostOfFloor(1.25), "a restore, exec to the guest's next byte: at most 1.25 × floor"),
    ("restore-wall", Flat(0.1), "the same: flat within 10 % from 128 MiB to 8 GiB"),
    ("restore-wall", MostOfPeers(0.5), "the same: at most 0.5 × the better peer"),
    ("save-wall", Most(60.0), "4 GiB with 1 MiB touched are saved in at most 60 ms"),
    ("save-disk", Most(2.1), "the same: at most 2 MiB on the disk"),
    ("diff-copy", Most(1.3), "the pause for a Diff of 10,000 pages: at most 1.3 × their copy"),
    ("debian-boot", MostOfPeers(1.0), "Debian from a disk, with a tap, to the login and off: at most 1 × the better peer"),
    ("debian-random", MostOfPeers(1.0), "fio in Debian, random reads of 4 KiB: at most 1 ×"),
    ("debian-read", MostOfPeers(1.0), "the same, sequential reads of 1 MiB: at most 1 ×"),
    ("debian-write", MostOfPeers(1.0), "the same, sequential writes of 1 MiB: at most 1 ×"),
    ("debian-send", MostOfPeers(1.0), "TCP from Debian: at most 1 ×"),
    ("debian-receive", MostOfPeers(1.0), "TCP to Debian: at most 1 ×"),
    ("boot-own", MostOfPeers(0.8), "Debian's vmlinux to power-off, each VMM's own command line: at most 0.8 ×"),
];

/// The targets whose measures are in the report.
pub fn check(report: &Report) -> Vec<Verdict> {
    let verdict = |(id, aim, target)| {
        let (found, met) = judge(report.find(id)?, aim)?;
        Some(Verdict { target, found, met })
    };
    TARGETS.into_iter().filter_map(verdict).collect()
}

/// The result, and whether it meets the target; none if something that it needs was not measured.
fn judge(measure: &Measure, aim: Aim) -> Option<(String, bool)> {
    let point = measure.point()?;
    let ours = median(point.samples(OURS)?);
    Some(match aim {
        OfFloor(least, most) => {
            let ratio = point.ratio(OURS, FLOOR)?;
            let is_met = (least..=most).contains(&ratio.median);
            (interval(&ratio), is_met)
        }
        MostOfFloor(limit) => {
            let ratios = measure.points.iter();
            let ratios = ratios.filter_map(|point| Some(point.ratio(OURS, FLOOR)?.median));
            let worst = ratios.reduce(f64::max)?;
            (format!("{worst:.2}"), worst <= limit)
        }
        Most(limit) => (number(ours), ours <= limit),
        Flat(limit) => {
            let medians = |point: &Point| point.samples(OURS).map(median);
            let all = || measure.points.iter().filter_map(medians);
            let spread = all().reduce(f64::max)? / all().reduce(f64::min)? - 1.0;
            (format!("{:.0} %", spread * 100.0), spread <= limit)
        }
        MostOfPeers(limit) => {
            let ratios = measure.points.iter().filter_map(of_peers);
            let worst = ratios.reduce(f64::max)?;
            (format!("{worst:.2}"), worst <= limit)
        }
    })
}

/// mini-vmm's median as a multiple of the better peer's.
fn of_peers(point: &Point) -> Option<f64> {
    let peers = ["firecracker", "firecracker-async", "cloud-hypervisor"];
    let peers = peers.iter().filter_map(|peer| point.samples(peer));
    let best = peers.map(median).reduce(f64::min)?;
    Some(median(point.samples(OURS)?) / best)
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

    fn all(measure: Measure) -> Vec<Verdict> {
        check(&Report {
            measures: vec![measure],
            ..Report::default()
        })
    }

    fn only(measure: Measure) -> Verdict {
        let verdicts = all(measure);
        assert_eq!(verdicts.len(), 1);
        verdicts[0].clone()
    }

    #[test]
    fn a_restore_has_three_targets() {
        let at = |x, subject, y| (Some(x), subject, y);
        let samples = [
            at(128.0, OURS, 10.0),
            at(128.0, FLOOR, 10.0),
            at(128.0, "firecracker", 25.0),
            at(8192.0, OURS, 12.0),
            at(8192.0, FLOOR, 8.0),
            at(8192.0, "firecracker", 25.0),
        ];
        let found = all(measure("restore-wall", &samples));
        let found: Vec<_> = found.iter().map(|v| (v.found.as_str(), v.met)).collect();
        assert_eq!(found, [("1.50", false), ("20 %", false), ("0.48", true)]);
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
    fn the_worst_position_counts() {
        let at = |x, subject, y| (Some(x), subject, y);
        let reads = only(measure(
            "disk-random-calls",
            &[
                at(1.0, OURS, 3.0),
                at(1.0, "firecracker", 4.0),
                at(1.0, "cloud-hypervisor", 5.0),
                at(32.0, OURS, 0.2),
                at(32.0, "firecracker", 2.0),
                at(32.0, "firecracker-async", 0.2),
            ],
        ));
        assert_eq!((reads.found.as_str(), reads.met), ("1.00", false));
    }

    #[test]
    fn footprints_are_absolute() {
        assert!(only(measure("idle-rss", &[(None, OURS, 2.9)])).met);
        assert!(!only(measure("idle-dirty", &[(None, OURS, 0.4)])).met);
        assert!(check(&Report::default()).is_empty());
    }
}
