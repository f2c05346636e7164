// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Both formats, and files that are slow or full.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use serde_json::Value as Json;

use super::*;
use crate::config::VmSpec;
use crate::telemetry::{Event, Reporter};

fn sources() -> Sources {
    Sources {
        exits: vec![Arc::default(), Arc::default()],
        calls: Hypercalls::none(),
        disks: vec![("disk\"\\\n0".to_owned(), Arc::default())],
        nets: vec![("net0".to_owned(), Arc::default())],
        vsock: Some(Arc::default()),
        balloon: Some(Arc::default()),
    }
}

/// What a scraper reads: the type of each family, and the value of each sample.
fn parse(text: &str) -> (BTreeMap<String, String>, BTreeMap<String, f64>) {
    let (mut types, mut values) = (BTreeMap::new(), BTreeMap::new());
    let mut helped = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(helped.insert(name.to_owned()) && !help.is_empty(), "{line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge"].contains(&kind), "{line}");
            assert!(helped.contains(name), "{line}");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none());
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert!(types.contains_key(name), "{line}");
            assert_eq!(name.ends_with("_total"), types[name] == "counter", "{line}");
            let value: f64 = value.parse().unwrap();
            assert!(values.insert(series.to_owned(), value).is_none(), "{line}");
        }
    }
    (types, values)
}

#[test]
fn the_text_for_prometheus_can_be_parsed() {
    let meter = Meter::default();
    meter.attach(sources());
    meter.api.count("PUT", "/drives/a");
    meter.api.count("PUT", "/drives/b/c");
    meter.api.count_failure("PUT", "/drives/b/c");
    meter.api.count("BREW", "/\u{e9}");
    meter.api.count_failure("BREW", "/\u{e9}");
    let text = meter.prometheus();
    assert!(text.ends_with('\n'));
    let (types, values) = parse(&text);
    assert_eq!(types.len(), sample::FAMILIES.len(), "{types:?}");
    let drives = r#"{method="PUT",path="/drives"}"#;
    assert_eq!(values[&format!("mini_vmm_api_requests_total{drives}")], 2.0);
    assert_eq!(
        values[&format!("mini_vmm_api_request_failures_total{drives}")],
        1.0
    );
    let other = r#"mini_vmm_api_requests_total{method="other",path="other"}"#;
    assert_eq!(values[other], 1.0);
    assert!(values.contains_key(r#"mini_vmm_vcpu_exits_total{vcpu="1",kind="pio_in"}"#));
    assert!(
        values.contains_key(r#"mini_vmm_disk_reads_total{device="disk\"\\\n0"}"#),
        "{text}"
    );
    assert_eq!(values["mini_vmm_resets_total"], 0.0);
}

#[test]
fn every_family_is_in_the_documentation() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    let Ok(page) = std::fs::read_to_string(page) else {
        eprintln!("SKIP: this is a package, without the pages of docs/");
        return;
    };
    for family in sample::FAMILIES {
        assert!(
            page.contains(&format!("`{}`", family.name)),
            "{}",
            family.name
        );
    }
}

#[test]
fn sums_survive_a_reset() {
    let count = |family: &'static Family, value| Sample {
        family,
        labels: Vec::new(),
        group: "g".to_owned(),
        key: "a.b".to_owned(),
        value,
    };
    let mut sum = count(&sample::READ_TIME, 5);
    sum.add(7);
    let mut longest = count(&sample::READ_LONGEST, 5);
    longest.add(7);
    assert_eq!((sum.value, longest.value), (12, 7));
    let meter = Meter::default();
    meter.attach(sources());
    meter.attach(sources());
    assert!(meter.prometheus().contains("mini_vmm_resets_total 1\n"));
}

#[test]
fn a_line_has_what_changed_since_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics");
    let meter = Meter::default();
    assert!(matches!(meter.flush(), Err(NotFlushed::NoFile)));
    meter.write_to(path.clone(), Sink::open(&path).unwrap());
    meter.api.count("GET", "/");
    meter.flush().unwrap();
    meter.attach(sources());
    meter.api.count("PUT", "/actions");
    meter.api.count_failure("PUT", "/actions");
    meter.flush().unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<Json> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [first, second] = &lines[..] else {
        panic!("{text}");
    };
    assert_eq!(first["get_api_requests"]["instance_info_count"], 1);
    assert_eq!(second["get_api_requests"]["instance_info_count"], 0);
    assert_eq!(second["put_api_requests"]["actions_fails"], 1);
    assert_eq!(second["vcpu"]["exit_io_in"], 0);
    assert_eq!(second["vcpu_1"]["exit_mmio_write"], 0);
    assert_eq!(second["block_disk\"\\\n0"]["read_agg"]["sum_us"], 0);
    assert_eq!(second["net_net0"]["tx_bytes_count"], 0);
    assert!(second["utc_timestamp_ms"].as_u64() >= first["utc_timestamp_ms"].as_u64());
}

#[test]
fn a_count_is_in_one_line_though_a_start_failed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics");
    let meter = Meter::default();
    meter.api.count("PUT", "/actions");
    for _ in 0..3 {
        meter.write_to(path.clone(), Sink::open(&path).unwrap());
        meter.flush().unwrap();
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let counts = text.lines().map(|line| {
        let line: Json = serde_json::from_str(line).unwrap();
        line["put_api_requests"]["actions_count"].as_u64().unwrap()
    });
    assert_eq!(counts.collect::<Vec<_>>(), [1, 0, 0]);
}

/// Nobody reads it: lines fill it, and then none is kept.
#[test]
fn a_fifo_without_a_reader_takes_what_fits() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let meter = Meter::default();
    meter.attach(sources());
    meter.write_to(path.clone(), Sink::open(&path).unwrap());
    let written = (0..1000).take_while(|_| meter.flush().is_ok()).count();
    assert!((1..1000).contains(&written), "{written}");
    for _ in 0..3 {
        assert!(matches!(meter.flush(), Err(NotFlushed::Full(_))));
    }
    // A reader gets whole lines, and then there is room again.
    let mut reader = std::fs::File::open(&path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let count = reader.read(&mut buffer).unwrap();
    meter.flush().unwrap();
    let more = reader.read(&mut buffer[count..]).unwrap();
    let text = std::str::from_utf8(&buffer[..count + more]).unwrap();
    let lines: Vec<Json> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), written + 1);
    assert_eq!(lines[written]["logger"]["missed_metrics_count"], 4);
}

#[test]
fn events_and_the_last_metrics_are_written_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let spec = VmSpec {
        metrics: Some(dir.path().join("metrics")),
        event_log: Some(dir.path().join("events")),
        ..VmSpec::new("vmlinux")
    };
    let meter = Arc::new(Meter::default());
    let reporter = Reporter::start(&spec, &meter).unwrap();
    for event in [Event::Started, Event::Paused, Event::Resumed] {
        reporter.events.say(&event);
    }
    drop(reporter);
    let events = std::fs::read_to_string(spec.event_log.unwrap()).unwrap();
    let names = events
        .lines()
        .map(|line| serde_json::from_str::<Json>(line).unwrap());
    let names: Vec<_> = names.map(|event| event["event"].clone()).collect();
    assert_eq!(names, ["started", "paused", "resumed"]);
    let metrics = std::fs::read_to_string(spec.metrics.unwrap()).unwrap();
    assert_eq!(metrics.lines().count(), 1);
}

#[test]
fn no_image_becomes_a_log() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = dir.path().join("vmlinux");
    std::fs::write(&kernel, "kernel").unwrap();
    let meter = Arc::new(Meter::default());
    for (metrics, event_log) in [(Some(kernel.clone()), None), (None, Some(kernel.clone()))] {
        let spec = VmSpec {
            metrics,
            event_log,
            ..VmSpec::new(&kernel)
        };
        let error = Reporter::start(&spec, &meter).unwrap_err().to_string();
        assert!(error.contains("would damage this file"), "{error}");
    }
    assert_eq!(std::fs::read(&kernel).unwrap(), b"kernel");
    for word in ["fd:", "fd:x", "fd:-1", "fd:99999"] {
        let spec = VmSpec {
            event_log: Some(word.into()),
            ..VmSpec::new(&kernel)
        };
        let error = Reporter::start(&spec, &meter).unwrap_err().to_string();
        assert!(error.contains("this is no descriptor"), "{error}");
    }
    let spec = VmSpec {
        event_log: Some("/nonexistent/events".into()),
        ..VmSpec::new(&kernel)
    };
    let error = Reporter::start(&spec, &meter).unwrap_err().to_string();
    assert!(
        error.contains("/nonexistent/events: events can't be written"),
        "{error}"
    );
}
