// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much a guest can make the host log: the logger counts.
#![allow(clippy::unwrap_used)]

use std::sync::Mutex;

use log::{Level, LevelFilter, Log, Metadata, Record};
use para_msr::handlers::LogGp;
use para_msr::{MsrDispatchBuilder, MsrRange, Outcome};

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Kept;

impl Log for Kept {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &Record<'_>) {
        assert_eq!(record.level(), Level::Warn);
        LINES.lock().unwrap().push(record.args().to_string());
    }
    fn flush(&self) {}
}

#[test]
fn h11_a_million_refused_accesses_are_twenty_one_lines() {
    log::set_logger(&Kept).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let rapl = MsrRange::new(0x606, 0x614).unwrap();
    let mut msrs = MsrDispatchBuilder::new()
        .insert(rapl, LogGp::new("RAPL"))
        .unwrap()
        .build();
    for _ in 0..500_000 {
        assert_eq!(msrs.read(0x611), Outcome::GpException);
        assert_eq!(msrs.write(0x610, 0xff), Outcome::GpException);
    }
    let lines = LINES.lock().unwrap();
    // 1, 2, 3, and the powers of two from 2^2 to 2^19.
    assert_eq!(lines.len(), 21);
    assert_eq!(lines[0], "RAPL: RDMSR of 0x611 is #GP (1 so far)");
    assert_eq!(lines[1], "RAPL: WRMSR of 0xff to 0x610 is #GP (2 so far)");
    assert!(lines[20].ends_with("(524288 so far)"), "{}", lines[20]);
}
