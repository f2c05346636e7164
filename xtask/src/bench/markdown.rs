// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The report as Markdown.

use super::results::{Measure, OTHER, OURS, Report};
use super::stats::{Estimate, estimate, mad, mann_whitney, quantile};
use super::targets::{self, Verdict};

/// The whole report.
pub fn render(report: &Report) -> String {
    let mut text = String::from("# Benchmark\n\n");
    for (name, value) in &report.facts {
        text += &format!("- {name}: {value}\n");
    }
    text += "\nRatios are medians of the ratios of single rounds, with their 95 % interval.\n";
    for measure in &report.measures {
        text += &format!("\n## {} ({})\n\n", measure.title, measure.unit);
        text += &table(&rows(measure));
    }
    let mut verdicts = vec![["target", "measured", ""].map(str::to_owned).to_vec()];
    for Verdict { target, found, met } in targets::check(report) {
        let met = if met { "met" } else { "**missed**" };
        verdicts.push(vec![target.to_owned(), found, met.to_owned()]);
    }
    if verdicts.len() > 1 {
        text += &format!("\n## Targets\n\n{}", table(&verdicts));
    }
    if !report.notes.is_empty() {
        text += "\n## Notes\n\n";
    }
    for note in &report.notes {
        text += &format!("- {note}\n");
    }
    text
}

/// A table of rows, the first of which is its head.
fn table(rows: &[Vec<String>]) -> String {
    let line = |cells: &Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    let cells = rows.first().map_or(0, Vec::len);
    lines.insert(1, format!("|{}\n", "---|".repeat(cells)));
    lines.concat()
}

/// The head and the rows of a measure's table, one per place and subject.
fn rows(measure: &Measure) -> Vec<Vec<String>> {
    let mut points = measure.points.iter();
    let is_compared = points.any(|point| point.samples(OTHER).is_some());
    let head = ["", "median", "25 % – 75 %", "MAD", "n", "ratio"].map(str::to_owned);
    let lead = measure.axis.iter().cloned();
    let last = is_compared.then(|| format!("p against {OTHER}"));
    let mut rows = vec![lead.chain(head).chain(last).collect()];
    for point in &measure.points {
        for series in &point.series {
            let (subject, samples) = (&series.subject, &series.samples);
            let quartile = |q| number(quantile(samples, q));
            let base = point.base().filter(|base| base != subject);
            let ratio = base.and_then(|base| {
                let ratio = interval(&point.ratio(subject, base)?);
                Some(format!("{ratio} × {base}"))
            });
            let other = point.samples(OTHER).filter(|_| subject == OURS);
            let p = other.map(|other| format!("{:.3}", mann_whitney(samples, other)));
            let cells = [
                subject.clone(),
                number(estimate(samples).median),
                format!("{} – {}", quartile(0.25), quartile(0.75)),
                number(mad(samples)),
                samples.len().to_string(),
                ratio.unwrap_or_default(),
            ];
            let last = is_compared.then(|| p.unwrap_or_default());
            let lead = point.x.map(number).into_iter();
            rows.push(lead.chain(cells).chain(last).collect());
        }
    }
    rows
}

/// A ratio with its interval.
pub fn interval(ratio: &Estimate) -> String {
    match ratio.interval {
        Some((low, high)) => format!("{:.2} ({low:.2} – {high:.2})", ratio.median),
        None => format!("{:.2}", ratio.median),
    }
}

/// Three significant digits, no exponent.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value == value.trunc() => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::FLOOR;

    #[test]
    fn numbers_have_three_digits() {
        let numbers = [1234.5, 12.345, 1.2345, 0.12345, 5.0].map(number);
        assert_eq!(numbers, ["1234", "12.3", "1.23", "0.123", "5"]);
    }

    #[test]
    fn rows_show_ratio_and_significance() {
        let mut measure = Measure::new("start-wall", "Start to exit", "ms", None);
        for round in 0..10 {
            let noise = f64::from(round) * 0.01;
            measure.push(None, FLOOR, 10.0 + noise);
            measure.push(None, OURS, (10.0 + noise) * 1.2);
            measure.push(None, OTHER, (10.0 + noise) * 2.0);
        }
        let report = Report {
            measures: vec![measure],
            notes: vec!["no perf".into()],
            ..Report::default()
        };
        let text = render(&report);
        assert!(text.contains("## Start to exit (ms)"), "{text}");
        assert!(
            text.contains("| mini-vmm | 12.1 |")
                && text.contains("1.20 (1.20 – 1.20) × floor | 0.000 |"),
            "{text}"
        );
        assert!(
            text.contains("| met |") && text.contains("- no perf"),
            "{text}"
        );
        // Every row has as many cells as the head.
        let cells = |line: &str| line.matches('|').count();
        let rows: Vec<usize> = text.lines().skip(7).take(5).map(cells).collect();
        assert_eq!(rows, [8; 5], "{text}");
    }

    #[test]
    fn growth_has_a_column_for_its_axis() {
        let mut measure = Measure::new("memory-wall", "Growth", "ms", Some("MiB"));
        measure.push(Some(32.0), OURS, 1.0);
        let report = Report {
            measures: vec![measure],
            ..Report::default()
        };
        let text = render(&report);
        assert!(
            text.contains("| MiB |  | median") && text.contains("| 32 | mini-vmm | 1 "),
            "{text}"
        );
    }
}
