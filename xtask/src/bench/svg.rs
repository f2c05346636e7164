// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Plots: every sample of a measure as a dot in its subject's row, or medians along an axis.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::coord::combinators::WithKeyPoints;
use plotters::coord::types::RangedCoordi32;
use plotters::prelude::*;

use super::markdown::number;
use super::results::{Measure, Point};
use super::stats::{median, quantile};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: u32 = 1080;
/// Colours that colour-blind people can distinguish (Okabe and Ito).
const COLOURS: [u32; 7] = [
    0x0072b2, 0xd55e00, 0x009e73, 0xcc79a7, 0xe69f00, 0x56b4e9, 0x000000,
];

/// The plot of a measure; none if there is nothing to show.
pub fn plot(measure: &Measure) -> Result<Option<String>> {
    let series = measure.points.iter().flat_map(|point| &point.series);
    let samples = series.flat_map(|series| series.samples.iter().copied());
    let Some(top) = samples.reduce(f64::max) else {
        return Ok(None);
    };
    // The axis starts at zero, because lengths are compared.
    let top = if top > 0.0 { top * 1.05 } else { 1.0 };
    let mut text = String::new();
    draw(measure, top, &mut text)?;
    Ok(Some(text))
}

fn draw(measure: &Measure, top: f64, text: &mut String) -> Result<()> {
    let rows = measure.point().map_or(0, |point| point.series.len());
    let height = match measure.axis {
        Some(_) => 540,
        None => 120 + 50 * rows as u32,
    };
    let area = SVGBackend::with_string(text, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE)?;
    let title = format!("{} ({})", measure.title, measure.unit);
    let inner = area.margin(10, 10, 10, 30);
    let inner = inner.titled(&title, ("sans-serif", 22))?;
    match (&measure.axis, measure.point()) {
        (Some(axis), _) => growth(&inner, measure, axis, top)?,
        (None, Some(point)) => distribution(&inner, point, top)?,
        (None, None) => {}
    }
    Ok(area.present()?)
}

fn colour(which: usize) -> RGBColor {
    let [_, red, green, blue] = COLOURS[which % COLOURS.len()].to_be_bytes();
    RGBColor(red, green, blue)
}

/// The distance between neighbouring positions.
const STEP: i32 = 1000;

/// An axis with this many positions, each with a label in its middle.
fn places(count: usize) -> WithKeyPoints<RangedCoordi32> {
    let middles: Vec<i32> = (0..count).map(middle).collect();
    (-STEP / 2..middle(count) - STEP / 2).with_key_points(middles)
}

fn middle(place: usize) -> i32 {
    place as i32 * STEP
}

/// A row of dots per subject, with a bar at the median.
fn distribution(area: &Area, point: &Point, top: f64) -> Result<()> {
    let count = point.series.len();
    let label = |at: &i32| {
        let series = &point.series[count - 1 - (at / STEP) as usize];
        format!("{} {}", series.subject, number(median(&series.samples)))
    };
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(40)
        .y_label_area_size(280)
        .build_cartesian_2d(0.0..top, places(count))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 16))
        .x_label_formatter(&|value| number(*value))
        .y_label_formatter(&label)
        .draw()?;
    for (which, series) in point.series.iter().enumerate() {
        let row = middle(count - 1 - which);
        let (colour, rounds) = (colour(which), series.samples.len() as i32);
        // Rounds from top to bottom: a drift of the machine shows.
        let at = |round: usize| row + 300 - (600 * round as i32 + 300) / rounds;
        chart.draw_series(series.samples.iter().enumerate().map(|(round, sample)| {
            Circle::new((*sample, at(round)), 3, colour.mix(0.6).filled())
        }))?;
        let median = median(&series.samples);
        let bar = [(median, row - 350), (median, row + 350)];
        chart.draw_series(LineSeries::new(bar, colour.stroke_width(2)))?;
    }
    Ok(())
}

/// A line of medians per subject, with vertical bars for the quartiles; the positions are evenly spaced.
fn growth(area: &Area, measure: &Measure, axis: &str, top: f64) -> Result<()> {
    let (area, names) = area.split_horizontally(WIDTH - 230);
    let label = |at: &i32| number(measure.points[(at / STEP) as usize].x.unwrap_or_default());
    let mut chart = ChartBuilder::on(&area)
        .x_label_area_size(50)
        .y_label_area_size(70)
        .build_cartesian_2d(places(measure.points.len()), 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 16))
        .x_desc(axis)
        .x_label_formatter(&label)
        .y_label_formatter(&|value| number(*value))
        .draw()?;
    let mut subjects: Vec<&str> = Vec::new();
    for series in measure.points.iter().flat_map(|point| &point.series) {
        if !subjects.contains(&series.subject.as_str()) {
            subjects.push(&series.subject);
        }
    }
    for (which, subject) in subjects.into_iter().enumerate() {
        let colour = colour(which);
        let places = measure.points.iter().enumerate();
        let found: Vec<(i32, [f64; 3])> = places
            .filter_map(|(place, point)| {
                let samples = point.samples(subject)?;
                let quartiles = [0.25, 0.5, 0.75].map(|q| quantile(samples, q));
                Some((middle(place), quartiles))
            })
            .collect();
        let line = found
            .iter()
            .map(|(place, [_, median, _])| (*place, *median));
        chart.draw_series(LineSeries::new(line, colour))?;
        chart.draw_series(found.iter().map(|(place, [low, median, high])| {
            ErrorBar::new_vertical(*place, *low, *median, *high, colour.filled(), 6)
        }))?;
        let style = ("sans-serif", 18, &colour).into_text_style(&names);
        names.draw_text(subject, &style, (15, 10 + 24 * which as i32))?;
    }
    Ok(())
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
        let svg = plot(&measure).unwrap().unwrap();
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
        let svg = plot(&measure).unwrap().unwrap();
        assert_eq!(svg.matches("<circle").count(), 3);
        let in_colour = |tag| {
            let lines = svg.lines().filter(|line| line.starts_with(tag));
            lines.filter(|line| line.contains("#0072B2")).count()
        };
        // One line through the medians; three spreads with two ends each.
        assert_eq!((in_colour("<polyline"), in_colour("<line")), (1, 9));
        // The grid from zero up.
        assert!(svg.matches("<line").count() - 9 >= 5, "{svg}");
        assert!(svg.contains("\nMiB\n"), "{svg}");
    }

    #[test]
    fn nothing_measured_is_no_plot() {
        assert_eq!(plot(&Measure::new("m", "M", "ms", None)).unwrap(), None);
        let mut zero = Measure::new("m", "M", "ms", None);
        zero.push(None, "x", 0.0);
        assert!(!plot(&zero).unwrap().unwrap().contains("NaN"));
    }
}
