// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Counters in Prometheus' text format, version 0.0.4.

use std::fmt::Write;

use super::sample::{FAMILIES, Kind, Sample};

/// All samples, by family.
pub(super) fn text(samples: &[Sample]) -> String {
    let mut text = String::new();
    for family in FAMILIES {
        let mut here = samples
            .iter()
            .filter(|sample| sample.family == *family)
            .peekable();
        if here.peek().is_none() {
            continue;
        }
        let (name, kind) = (
            family.name,
            match family.kind {
                Kind::Count | Kind::Time => "counter",
                Kind::Longest => "gauge",
            },
        );
        // Writing to a string doesn't fail.
        let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", family.help);
        for sample in here {
            let _ = writeln!(text, "{name}{} {}", labels(sample), number(sample));
        }
    }
    text
}

fn labels(sample: &Sample) -> String {
    let labels = sample.labels.iter();
    let labels: Vec<_> = labels
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
        .collect();
    match labels.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", labels.join(",")),
    }
}

/// A label's value: backslashes, quotes and ends of lines are escaped.
fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\");
    value.replace('"', "\\\"").replace('\n', "\\n")
}

fn number(sample: &Sample) -> String {
    let value = sample.value;
    match sample.family.kind {
        Kind::Count => value.to_string(),
        Kind::Time | Kind::Longest => {
            format!("{}.{:09}", value / 1_000_000_000, value % 1_000_000_000)
        }
    }
}
