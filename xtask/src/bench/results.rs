// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The results: samples by measure, position on an axis, and subject.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::stats::{Estimate, estimate, paired_ratio};

/// All measures: id, title, unit, and what grows along the axis, if there is one.
#[rustfmt::skip]
const MEASURES: [(&str, &str, &str, Option<&str>); 68] = [
    ("start-wall", "exec to exit", "ms", None),
    ("start-cpu", "exec to exit, CPU", "ms", None),
    ("first-byte", "exec to the guest's first byte", "ms", None),
    ("tear-down", "the guest's first byte to exit", "ms", None),
    ("memory-wall", "exec to exit by memory", "ms", Some("MiB")),
    ("memory-cpu", "exec to exit by memory, CPU", "ms", Some("MiB")),
    ("vcpus-wall", "exec to exit by vCPUs", "ms", Some("vCPUs")),
    ("vcpus-cpu", "exec to exit by vCPUs, CPU", "ms", Some("vCPUs")),
    ("exits-port", "port writes to a device", "exits/s", None),
    ("exits-mmio", "MMIO writes to no device", "exits/s", None),
    ("exits-msr", "registrations by MSR", "exits/s", None),
    ("exits-hypercall", "hypercalls by port", "exits/s", None),
    ("idle-rss", "idle VM, resident without guest", "MB", None),
    ("idle-dirty", "idle VM, private and dirty", "MB", None),
    ("many-up", "machines at once until all guests run", "ms", Some("machines")),
    ("many-rss", "machines at once, memory without guests", "MB", Some("machines")),
    ("many-down", "machines at once until all are killed", "ms", Some("machines")),
    ("resets", "machines per second in one process, by resets", "1/s", None),
    ("instructions-port", "a port write to a device, in user space", "instructions", None),
    ("instructions-mmio", "an MMIO write to no device, in user space", "instructions", None),
    ("instructions-hypercall", "a hypercall by port, in user space", "instructions", None),
    ("disk-random-instructions", "a random read of 4 KiB, in user space", "instructions", Some("at once")),
    ("disk-random-calls", "a random read of 4 KiB", "system calls", Some("at once")),
    ("disk-random-time", "a random read of 4 KiB", "µs", Some("at once")),
    ("disk-read-instructions", "a sequential read of 1 MiB, in user space", "instructions", None),
    ("disk-read-calls", "a sequential read of 1 MiB", "system calls", None),
    ("disk-read-time", "a sequential read of 1 MiB", "µs", None),
    ("disk-write-instructions", "a sequential write of 1 MiB, in user space", "instructions", None),
    ("disk-write-calls", "a sequential write of 1 MiB", "system calls", None),
    ("disk-write-time", "a sequential write of 1 MiB", "µs", None),
    ("net-ping-instructions", "a ping of the host and its reply, in user space", "instructions", Some("at once")),
    ("net-ping-calls", "a ping of the host and its reply", "system calls", Some("at once")),
    ("net-send-instructions", "62 KiB of TCP sent in one packet, in user space", "instructions", None),
    ("net-send-calls", "62 KiB of TCP sent in one packet", "system calls", None),
    ("vsock-out-instructions", "64 KiB from the guest by vsock, in user space", "instructions", None),
    ("vsock-out-calls", "64 KiB from the guest by vsock", "system calls", None),
    ("vsock-in-instructions", "64 KiB to the guest by vsock, in user space", "instructions", None),
    ("vsock-in-calls", "64 KiB to the guest by vsock", "system calls", None),
    ("api-plain", "exec to the guest's first byte without the API", "ms", None),
    ("api-answer", "exec to the API's first answer", "× exec to a guest", None),
    ("api-start", "exec to a guest that four requests start", "× exec to a guest", None),
    ("api-idle", "a process that waits for requests, resident", "MB", None),
    ("api-storm", "a guest's exits per second of CPU lost to a storm of requests", "%", None),
    ("api-growth", "growth of the process in the storm", "MB", None),
    ("restore-wall", "exec to a saved guest's next byte, by memory", "ms", Some("MiB")),
    ("restore-cpu", "the same, CPU", "ms", Some("MiB")),
    ("clones-up", "clones of a snapshot at once until all guests run", "ms", Some("clones")),
    ("clones-private", "the same, private memory of one", "MB", Some("clones")),
    ("clones-shared", "the same, guest memory that one shares", "MB", Some("clones")),
    ("save-wall", "4 GiB are saved, of which the guest touched 1 MiB", "ms", None),
    ("save-disk", "the same, on the disk", "MB", None),
    ("diff-wall", "a Diff of 10,240 pages, which a running guest changes", "ms", None),
    ("diff-copy", "the same, compared with a copy of these pages", "× the copy", None),
    ("diff-disk", "the same, on the disk", "MB", None),
    ("size", "size of the program's file", "MB", None),
    ("boot", "Debian's vmlinux, the same command line, exec to power-off", "ms", None),
    ("boot-init", "Debian's vmlinux, the same command line, exec to init", "ms", None),
    ("boot-bzimage", "Debian's bzImage, the same command line, exec to power-off", "ms", None),
    ("boot-own", "Debian's vmlinux, each VMM's own command line, exec to power-off", "ms", None),
    ("debian-login", "Debian from a disk, with a tap, exec to the login", "ms", None),
    ("debian-off", "Debian from a disk, with a tap, power-off", "ms", None),
    ("debian-boot", "Debian from a disk, with a tap, to the login and off", "ms", None),
    ("debian-random", "fio in Debian: a random read of 4 KiB", "µs", Some("at once")),
    ("debian-read", "fio in Debian: a sequential read of 1 MiB", "µs", None),
    ("debian-write", "fio in Debian: a sequential write of 1 MiB", "µs", None),
    ("debian-send", "TCP from Debian: 1 MiB", "µs", Some("bytes of a message")),
    ("debian-receive", "TCP to Debian: 1 MiB", "µs", Some("bytes of a message")),
    ("timeline", "mini-vmm and Debian's kernel, by stage", "ms", None),
];

/// The samples of one subject, one per round.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The subject's name.
    pub subject: String,
    /// In the measure's unit; the same index in all series of a point is the same round.
    pub samples: Vec<f64>,
}

/// All subjects at one position of the axis.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The position; none if the measure has no axis.
    pub x: Option<f64>,
    /// One per subject.
    pub series: Vec<Series>,
}

/// A measure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measure {
    /// A short name, unique in a report, for file names and JSON.
    pub id: String,
    /// A heading.
    pub title: String,
    /// The unit of all samples.
    pub unit: String,
    /// What grows along the axis, with its unit.
    pub axis: Option<String>,
    /// In the order of the axis.
    pub points: Vec<Point>,
}

/// The subject that all ratios refer to, if it was measured.
pub const FLOOR: &str = "floor";
/// The build that is measured.
pub const OURS: &str = "mini-vmm";
/// The build that it is compared with.
pub const OTHER: &str = "other build";

/// The samples with their statistics.
impl Serialize for Series {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Estimate { median, interval } = estimate(&self.samples);
        let (subject, samples) = (&self.subject, &self.samples);
        json!({"subject": subject, "median": median, "interval95": interval, "samples": samples})
            .serialize(serializer)
    }
}

/// The item that `is` finds, otherwise a new one at the end.
fn find_or_add<T>(all: &mut Vec<T>, is: impl FnMut(&T) -> bool, new: impl FnOnce() -> T) -> &mut T {
    let at = all.iter().position(is).unwrap_or_else(|| {
        all.push(new());
        all.len() - 1
    });
    &mut all[at]
}

impl Point {
    /// The samples of a subject.
    pub fn samples(&self, subject: &str) -> Option<&[f64]> {
        let mut all = self.series.iter();
        Some(&all.find(|series| series.subject == subject)?.samples)
    }

    /// The subject that the ratios at this point refer to: the floor, otherwise mini-vmm.
    pub fn base(&self) -> Option<&str> {
        let is_there = |name: &&str| self.samples(name).is_some_and(|found| !found.is_empty());
        [FLOOR, OURS].into_iter().find(is_there)
    }

    /// `subject` divided by `base`, round by round.
    pub fn ratio(&self, subject: &str, base: &str) -> Option<Estimate> {
        let ratio = paired_ratio(self.samples(subject)?, self.samples(base)?);
        (!ratio.median.is_nan()).then_some(ratio)
    }
}

impl Measure {
    /// A measure without points.
    pub fn new(id: &str, title: &str, unit: &str, axis: Option<&str>) -> Measure {
        Measure {
            id: id.to_owned(),
            title: title.to_owned(),
            unit: unit.to_owned(),
            axis: axis.map(str::to_owned),
            points: Vec::new(),
        }
    }

    /// The measure that is listed with this id.
    fn listed(id: &str) -> Measure {
        let found = MEASURES.into_iter().find(|measure| measure.0 == id);
        let (_, title, unit, axis) = found.unwrap_or((id, id, "", None));
        Measure::new(id, title, unit, axis)
    }

    /// Adds one subject's sample at a position.
    pub fn push(&mut self, x: Option<f64>, subject: &str, sample: f64) {
        let new_point = || Point {
            x,
            series: Vec::new(),
        };
        let new_series = || Series {
            subject: subject.to_owned(),
            samples: Vec::new(),
        };
        let point = find_or_add(&mut self.points, |point| point.x == x, new_point);
        let is = |series: &Series| series.subject == subject;
        let series = find_or_add(&mut point.series, is, new_series);
        series.samples.push(sample);
    }

    /// The only point of a measure without an axis.
    pub fn point(&self) -> Option<&Point> {
        self.points.first()
    }
}

/// A run of the suite.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Facts about the machine and the programs.
    pub facts: Vec<(String, String)>,
    /// The measures, in the order of the report.
    pub measures: Vec<Measure>,
    /// What could not be measured, and why; other findings.
    pub notes: Vec<String>,
    /// Whether time is counted in instructions; the units say so.
    pub counted: bool,
}

impl Report {
    /// Adds one subject's sample to a measure, which must be listed, at a position of its axis.
    pub fn push(&mut self, id: &str, x: Option<f64>, subject: &str, sample: f64) {
        let counted = if self.counted { ", counted" } else { "" };
        let new = || {
            let mut measure = Measure::listed(id);
            measure.unit += counted;
            measure
        };
        let measure = find_or_add(&mut self.measures, |measure| measure.id == id, new);
        measure.push(x, subject, sample);
    }

    /// The measure with this id.
    pub fn find(&self, id: &str) -> Option<&Measure> {
        self.measures.iter().find(|measure| measure.id == id)
    }

    /// All samples, for programs.
    pub fn to_json(&self) -> Value {
        let (measures, notes) = (&self.measures, &self.notes);
        let facts = self.facts.iter().cloned().collect::<BTreeMap<_, _>>();
        json!({ "version": 1, "facts": facts, "measures": measures, "notes": notes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_kept_by_place_and_subject() {
        let mut measure = Measure::new("m", "M", "ms", Some("MiB"));
        for round in 1..=2 {
            for x in [32.0, 64.0] {
                measure.push(Some(x), OURS, x * f64::from(round) * 1.5);
                measure.push(Some(x), FLOOR, x * f64::from(round));
            }
        }
        assert_eq!(measure.points.len(), 2);
        let point = &measure.points[1];
        assert_eq!(point.samples(FLOOR), Some([64.0, 128.0].as_slice()));
        assert_eq!(point.base(), Some(FLOOR));
        assert_eq!(point.ratio(OURS, FLOOR).unwrap().median, 1.5);
        assert_eq!(point.ratio("nobody", FLOOR), None);
    }

    #[test]
    fn json_has_every_sample() {
        let mut measure = Measure::new("start-wall", "Start", "ms", None);
        measure.push(None, OURS, 2.5);
        let report = Report {
            facts: vec![("cpu".into(), "x".into())],
            measures: vec![measure],
            notes: vec!["n".into()],
            ..Report::default()
        };
        let json = report.to_json();
        assert_eq!(
            json["measures"][0]["points"][0]["series"][0]["samples"][0],
            2.5
        );
        assert_eq!(json["facts"]["cpu"], "x");
        assert_eq!(report.find("start-wall").unwrap().unit, "ms");
        assert!(report.find("x").is_none());
    }

    #[test]
    fn measures_are_listed_once_and_counted_ones_say_so() {
        let mut ids: Vec<&str> = Vec::new();
        for (id, ..) in MEASURES {
            assert!(!ids.contains(&id), "{id}");
            ids.push(id);
        }
        let mut report = Report {
            counted: true,
            ..Report::default()
        };
        report.push("memory-wall", Some(32.0), OURS, 1.0);
        let measure = report.find("memory-wall").unwrap();
        assert_eq!(measure.axis.as_deref(), Some("MiB"));
        assert_eq!(measure.unit, "ms, counted");
    }
}
