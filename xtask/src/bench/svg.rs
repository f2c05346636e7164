// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Plots: every sample of a measure as a dot over its subject, or medians along an axis.

use std::fmt::Write;

use super::markdown::number;
use super::results::Measure;
use super::stats::{median, quantile};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Told apart also by who sees fewer colours (Okabe and Ito).
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000",
];

/// The plot of a measure; none where it has nothing to show.
pub fn plot(measure: &Measure) -> Option<String> {
    let top = measure
        .points
        .iter()
        .flat_map(|point| &point.series)
        .flat_map(|series| &series.samples)
        .copied()
        .reduce(f64::max)?;
    let mut svg = Svg::new(measure, if top > 0.0 { top * 1.05 } else { 1.0 });
    match measure.axis {
        Some(_) => svg.growth(measure),
        None => svg.distribution(measure),
    }
    Some(svg.text + "</svg>\n")
}

struct Svg {
    text: String,
    top: f64,
}

impl Svg {
    fn new(measure: &Measure, top: f64) -> Svg {
        let mut svg = Svg {
            text: format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
                 font-family=\"sans-serif\" font-size=\"12\">\n\
                 <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
            ),
            top,
        };
        let title = format!("{} ({})", measure.title, measure.unit);
        svg.write(LEFT, 22.0, "start", "#000000", &title);
        // The axis starts at zero: lengths are what is compared.
        for tick in 0..=4 {
            let value = top * f64::from(tick) / 4.0;
            let y = svg.y(value);
            svg.line((LEFT, y), (WIDTH - RIGHT, y), "#dddddd");
            svg.write(LEFT - 6.0, y + 4.0, "end", "#000000", &number(value));
        }
        svg
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - value / self.top * (HEIGHT - TOP - BOTTOM)
    }

    fn push(&mut self, arguments: std::fmt::Arguments) {
        // Writing to a String never fails.
        let _ = self.text.write_fmt(arguments);
        self.text.push('\n');
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.push(format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
        ));
    }

    fn dot(&mut self, x: f64, y: f64, colour: &str) {
        self.push(format_args!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\" fill-opacity=\"0.6\"/>"
        ));
    }

    fn write(&mut self, x: f64, y: f64, anchor: &str, colour: &str, text: &str) {
        let text = escape(text);
        self.push(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>"
        ));
    }

    /// A column of dots per subject, with a bar at the median.
    fn distribution(&mut self, measure: &Measure) {
        let Some(point) = measure.point() else { return };
        let step = (WIDTH - LEFT - RIGHT) / point.series.len() as f64;
        for (place, series) in point.series.iter().enumerate() {
            let colour = COLOURS[place % COLOURS.len()];
            let middle = LEFT + step * (place as f64 + 0.5);
            for (round, &sample) in series.samples.iter().enumerate() {
                // Rounds from left to right: a drift of the machine shows.
                let share = (round as f64 + 0.5) / series.samples.len() as f64 - 0.5;
                self.dot(middle + share * step * 0.6, self.y(sample), colour);
            }
            let y = self.y(median(&series.samples));
            self.line((middle - step * 0.35, y), (middle + step * 0.35, y), colour);
            let label = format!("{} {}", series.subject, number(median(&series.samples)));
            self.write(middle, HEIGHT - BOTTOM + 18.0, "middle", colour, &label);
        }
    }

    /// A line of medians per subject, with the quartiles upright; the places evenly spaced.
    fn growth(&mut self, measure: &Measure) {
        let step = (WIDTH - LEFT - RIGHT) / measure.points.len().max(2) as f64;
        let x = |place: usize| LEFT + step * (place as f64 + 0.5);
        for (place, point) in measure.points.iter().enumerate() {
            let label = number(point.x.unwrap_or_default());
            self.write(
                x(place),
                HEIGHT - BOTTOM + 18.0,
                "middle",
                "#000000",
                &label,
            );
        }
        let axis = measure.axis.as_deref().unwrap_or_default();
        self.write(
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 12.0,
            "middle",
            "#000000",
            axis,
        );
        let mut subjects: Vec<&str> = Vec::new();
        for series in measure.points.iter().flat_map(|point| &point.series) {
            if !subjects.contains(&series.subject.as_str()) {
                subjects.push(&series.subject);
            }
        }
        for (which, subject) in subjects.iter().enumerate() {
            let colour = COLOURS[which % COLOURS.len()];
            let mut last = None;
            for (place, point) in measure.points.iter().enumerate() {
                let Some(samples) = point.samples(subject) else {
                    continue;
                };
                let here = (x(place), self.y(median(samples)));
                let quartile = |q| self.y(quantile(samples, q));
                let (low, high) = (quartile(0.25), quartile(0.75));
                self.line((here.0, low), (here.0, high), colour);
                self.dot(here.0, here.1, colour);
                if let Some(last) = last.replace(here) {
                    self.line(last, here, colour);
                }
            }
            if let Some((_, y)) = last {
                self.write(
                    WIDTH - RIGHT - step * 0.3,
                    y + 4.0,
                    "start",
                    colour,
                    subject,
                );
            }
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_a_dot() {
        let mut measure = Measure::new("m", "a < b & c", "ms", None);
        for sample in [1.0, 2.0, 3.0] {
            measure.push(None, "x", sample);
            measure.push(None, "y", sample * 2.0);
        }
        let svg = plot(&measure).unwrap();
        assert_eq!(svg.matches("<circle").count(), 6);
        assert!(
            svg.contains("a &lt; b &amp; c (ms)") && svg.ends_with("</svg>\n"),
            "{svg}"
        );
        assert!(!svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn growth_is_a_line_through_the_medians() {
        let mut measure = Measure::new("m", "M", "ms", Some("MiB"));
        for x in [32.0, 64.0, 128.0] {
            measure.push(Some(x), "x", x);
        }
        let svg = plot(&measure).unwrap();
        assert_eq!(svg.matches("<circle").count(), 3);
        // Five grid lines, three spreads, two between the medians.
        assert_eq!(svg.matches("<line").count(), 10);
        assert!(svg.contains(">MiB</text>"), "{svg}");
    }

    #[test]
    fn nothing_measured_is_no_plot() {
        assert_eq!(plot(&Measure::new("m", "M", "ms", None)), None);
        let mut zero = Measure::new("m", "M", "ms", None);
        zero.push(None, "x", 0.0);
        assert!(!plot(&zero).unwrap().contains("NaN"));
    }
}
