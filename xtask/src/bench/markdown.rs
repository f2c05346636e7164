// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The report as Markdown.

use std::fmt::Write;

use super::results::{Measure, OTHER, OURS, Point, Report};
use super::stats::{Estimate, estimate, mad, mann_whitney, quantile};
use super::targets::{self, Verdict};

/// The whole report.
pub fn render(report: &Report) -> String {
    let mut text = String::from("# Benchmark\n\n");
    for (name, value) in &report.facts {
        line(&mut text, format_args!("- {name}: {value}"));
    }
    text.push_str(
        "\nRatios are medians of the ratios of single rounds, with their 95 % interval.\n",
    );
    for measure in &report.measures {
        line(
            &mut text,
            format_args!("\n## {} ({})\n", measure.title, measure.unit),
        );
        table(&mut text, measure);
    }
    let verdicts = targets::check(report);
    if !verdicts.is_empty() {
        text.push_str("\n## Targets\n\n| target | measured | |\n|---|---|---|\n");
        for Verdict { target, found, met } in verdicts {
            let met = if met { "met" } else { "**missed**" };
            line(&mut text, format_args!("| {target} | {found} | {met} |"));
        }
    }
    if !report.notes.is_empty() {
        text.push_str("\n## Notes\n\n");
        for note in &report.notes {
            line(&mut text, format_args!("- {note}"));
        }
    }
    text
}

fn line(text: &mut String, arguments: std::fmt::Arguments) {
    // Writing to a String never fails.
    let _ = text.write_fmt(arguments);
    text.push('\n');
}

fn table(text: &mut String, measure: &Measure) {
    let axis = measure.axis.as_deref();
    let compared = measure
        .points
        .iter()
        .any(|point| point.samples(OTHER).is_some());
    let (lead, rule) = axis.map_or((String::new(), ""), |axis| (format!("| {axis} "), "|---"));
    let (last, last_rule) = match compared {
        true => (format!(" p against {OTHER} |"), "---|"),
        false => (String::new(), ""),
    };
    line(
        text,
        format_args!("{lead}| | median | 25 % – 75 % | MAD | n | ratio |{last}"),
    );
    line(
        text,
        format_args!("{rule}|---|---|---|---|---|---|{last_rule}"),
    );
    for point in &measure.points {
        rows(text, point, compared);
    }
}

fn rows(text: &mut String, point: &Point, compared: bool) {
    for series in &point.series {
        let samples = &series.samples;
        let lead = point
            .x
            .map_or(String::new(), |x| format!("| {} ", number(x)));
        let ratio = point
            .base()
            .filter(|base| *base != series.subject)
            .and_then(|base| Some((base, point.ratio(&series.subject, base)?)))
            .map_or(String::new(), |(base, ratio)| {
                format!("{} × {base}", interval(&ratio))
            });
        let last = match (compared, point.samples(OTHER)) {
            (true, Some(other)) if series.subject == OURS => {
                format!(" {:.3} |", mann_whitney(samples, other))
            }
            (true, _) => " |".to_owned(),
            (false, _) => String::new(),
        };
        line(
            text,
            format_args!(
                "{lead}| {} | {} | {} – {} | {} | {} | {ratio} |{last}",
                series.subject,
                number(estimate(samples).median),
                number(quantile(samples, 0.25)),
                number(quantile(samples, 0.75)),
                number(mad(samples)),
                samples.len(),
            ),
        );
    }
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
            text.contains("| MiB | | median") && text.contains("| 32 | mini-vmm | 1 "),
            "{text}"
        );
    }
}
