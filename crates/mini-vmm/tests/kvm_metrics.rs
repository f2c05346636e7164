// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Counters that count, and events in their order.

#![allow(clippy::unwrap_used)] // a test may panic

mod bare;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use bare::http::Client;
use bare::{Asm, Vm, guest};
use mini_vmm::layout;
use rustix::fs::{CWD, FileType, mknodat};
use serde_json::Value;

/// A port without a device.
const NOWHERE: u16 = 0x1234;

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect()
}

/// `vm` with files for both.
fn reporting(vm: &mut Vm) {
    let (metrics, events) = (vm.path("metrics"), vm.path("events"));
    vm.args(["--metrics".as_ref(), metrics.as_os_str()]);
    vm.args(["--event-log".as_ref(), events.as_os_str()]);
}

#[test]
fn a_run_leaves_its_counts_and_events() {
    let guest = guest(|asm| {
        asm.out(NOWHERE, 1).out(NOWHERE, 2).out(NOWHERE, 3);
        asm.out(layout::PVPANIC, 1).power_off();
    });
    let Some(mut vm) = Vm::new("a_run_leaves_its_counts_and_events", &guest) else {
        return;
    };
    reporting(&mut vm);
    vm.args(["--on-panic", "continue"]).run().expect(0);
    let metrics = lines(&vm.path("metrics"));
    assert_eq!(metrics.len(), 1);
    let outs = &metrics[0]["vcpu_0"]["exit_io_out"];
    // Three to nowhere, the report, and the one that powers off.
    assert_eq!(*outs, 5, "{metrics:?}");
    assert_eq!(metrics[0]["vcpu"]["exit_io_out"], *outs);
    let events = lines(&vm.path("events"));
    assert_eq!(names(&events), ["started", "guest-panic", "exited"]);
    let end = events.last().unwrap();
    assert_eq!(
        (end["outcome"].as_str(), end["code"].as_u64()),
        (Some("power-off"), Some(0))
    );
}

#[test]
fn events_go_to_a_lent_descriptor() {
    let guest = guest(|asm| {
        asm.fail(3);
    });
    let Some(mut vm) = Vm::new("events_go_to_a_lent_descriptor", &guest) else {
        return;
    };
    let events = vm.path("events");
    vm.args(["--event-log", "fd:3", "--debug-exit"]);
    let mut vm = vm.through(&format!("\"$@\" 3>&1 >&2 | cat >{events:?}"));
    vm.run();
    let events = lines(&events);
    assert_eq!(names(&events), ["started", "exited"]);
    let end = &events[1];
    assert_eq!(
        (end["outcome"].as_str(), end["code"].as_u64()),
        (Some("debug-exit"), Some(7))
    );
}

#[test]
fn counts_outlive_the_machines_of_a_run() {
    let guest = guest(|asm| {
        asm.out(NOWHERE, 1)
            .out(layout::CF9_RESET, 2)
            .out(layout::CF9_RESET, 6);
        asm.forever(|_| {});
    });
    let Some(mut vm) = Vm::new("counts_outlive_the_machines_of_a_run", &guest) else {
        return;
    };
    reporting(&mut vm);
    vm.args(["--on-reboot", "reset", "--timeout", "3"])
        .run()
        .expect(36);
    let metrics = lines(&vm.path("metrics")).pop().unwrap();
    let resets = metrics["vmm"]["reset_count"].as_u64().unwrap();
    let outs = metrics["vcpu_0"]["exit_io_out"].as_u64().unwrap();
    assert!(resets > 0, "{metrics}");
    assert!(outs >= 3 * resets, "{resets} resets: {metrics}");
    let events = lines(&vm.path("events"));
    let names = names(&events);
    assert_eq!(
        (names[0], names[1], names[names.len() - 1]),
        ("started", "reset", "exited")
    );
    assert_eq!(events.last().unwrap()["outcome"], "timeout");
}

/// Exits in an endless loop.
fn busy_guest() -> Asm {
    guest(|asm| {
        asm.forever(|asm| {
            asm.out(NOWHERE, 0);
        });
    })
}

/// The value of a series of `GET /metrics`.
fn scrape(api: &Path, series: &str) -> u64 {
    let mut stream = UnixStream::connect(api).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.contains("Content-Type: text/plain; version=0.0.4"),
        "{answer}"
    );
    let value = answer.lines().find_map(|line| line.strip_prefix(series));
    value
        .unwrap_or_else(|| panic!("{series}: {answer}"))
        .trim()
        .parse()
        .unwrap()
}

#[test]
fn a_fifo_that_nobody_reads_holds_nothing_up() {
    let test = "a_fifo_that_nobody_reads_holds_nothing_up";
    let Some(mut vm) = Vm::waiting(test, &busy_guest()) else {
        return;
    };
    let (api, fifo, events) = (vm.path("api"), vm.path("fifo"), vm.path("events"));
    mknodat(CWD, &fifo, FileType::Fifo, 0o600.into(), 0).unwrap();
    vm.args(["--event-log".as_ref(), events.as_os_str()]);
    let mut running = vm.start();
    let mut client = Client::connect(&mut running, &api);
    let series = r#"mini_vmm_vcpu_exits_total{vcpu="0",kind="pio_out"}"#;
    client.describe();
    let body = serde_json::json!({ "metrics_path": fifo }).to_string();
    client.done("PUT", "/metrics", &body);
    client.act("InstanceStart");
    client.let_it_run();
    let flush = r#"{"action_type": "FlushMetrics"}"#;
    while client.ask("PUT", "/actions", flush).unwrap().status == 204 {}
    client.refused("PUT", "/actions", flush, "this FIFO is full; read it");
    let before = scrape(&api, series);
    client.let_it_run();
    assert!(scrape(&api, series) > before);
    client.set_state("Paused");
    let paused = scrape(&api, series);
    assert_eq!(scrape(&api, series), paused);
    client.set_state("Resumed");
    client.act("Stop");
    running.end().expect(0);
    let events = lines(&events);
    assert_eq!(names(&events), ["started", "paused", "resumed", "exited"]);
    assert_eq!(events[3]["outcome"], "stopped");
}
