// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was measured: samples by measure, place on an axis, and subject.

use serde_json::{Value, json};

use super::stats::{Estimate, estimate, paired_ratio};

/// The samples of one subject, one per round.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Whose they are.
    pub subject: String,
    /// In the measure's unit; the same place in all series of a point is the same round.
    pub samples: Vec<f64>,
}

/// All subjects at one place of the axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The place; none where the measure has no axis.
    pub x: Option<f64>,
    /// One per subject.
    pub series: Vec<Series>,
}

/// One thing that is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    /// A short name, unique in a report: file names and JSON have it.
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

/// The subject that all ratios are to, where it was measured.
pub const FLOOR: &str = "floor";
/// The build that is measured.
pub const OURS: &str = "mini-vmm";
/// The build that it is compared with.
pub const OTHER: &str = "other build";

impl Point {
    /// The samples of a subject.
    pub fn samples(&self, subject: &str) -> Option<&[f64]> {
        let series = self
            .series
            .iter()
            .find(|series| series.subject == subject)?;
        Some(&series.samples)
    }

    /// What the ratios at this point are to: the floor, else mini-vmm.
    pub fn base(&self) -> Option<&str> {
        [FLOOR, OURS].into_iter().find(|name| {
            self.samples(name)
                .is_some_and(|samples| !samples.is_empty())
        })
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

    /// Adds one subject's sample at a place.
    pub fn push(&mut self, x: Option<f64>, subject: &str, sample: f64) {
        let at = match self.points.iter().position(|point| point.x == x) {
            Some(at) => at,
            None => {
                self.points.push(Point {
                    x,
                    series: Vec::new(),
                });
                self.points.len() - 1
            }
        };
        let series = &mut self.points[at].series;
        match series.iter_mut().find(|series| series.subject == subject) {
            Some(series) => series.samples.push(sample),
            None => series.push(Series {
                subject: subject.to_owned(),
                samples: vec![sample],
            }),
        }
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
    /// What was measured, in the order of the report.
    pub measures: Vec<Measure>,
    /// What could not be measured, and why; what was found besides numbers.
    pub notes: Vec<String>,
}

impl Report {
    /// The measure with this id.
    pub fn find(&self, id: &str) -> Option<&Measure> {
        self.measures.iter().find(|measure| measure.id == id)
    }

    /// All samples, for programs.
    pub fn to_json(&self) -> Value {
        let facts: serde_json::Map<String, Value> = self
            .facts
            .iter()
            .map(|(name, value)| (name.clone(), value.as_str().into()))
            .collect();
        let measures: Vec<Value> = self.measures.iter().map(measure_json).collect();
        json!({ "version": 1, "facts": facts, "measures": measures, "notes": self.notes })
    }
}

fn measure_json(measure: &Measure) -> Value {
    let points: Vec<Value> = measure
        .points
        .iter()
        .map(|point| {
            let series: Vec<Value> = point
                .series
                .iter()
                .map(|series| {
                    let Estimate { median, interval } = estimate(&series.samples);
                    json!({
                        "subject": series.subject,
                        "median": median,
                        "interval95": interval.map(|(low, high)| [low, high]),
                        "samples": series.samples,
                    })
                })
                .collect();
            json!({ "x": point.x, "series": series })
        })
        .collect();
    json!({
        "id": measure.id,
        "title": measure.title,
        "unit": measure.unit,
        "axis": measure.axis,
        "points": points,
    })
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
}
