// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device's side of the messages, with a scripted device.
#![allow(clippy::unwrap_used)]

mod bench;
mod saved;

use virtio_transport::device::Event;
use virtio_transport::message::{Answer, Command, Failure};
use virtio_transport::queue::NotDrained;

use bench::{Bench, NoPoller, Plan, RUNS, STARTED};

#[test]
fn a_start_hands_over_the_queues_and_looks_at_each() {
    let mut bench = Bench::new();
    assert!(!bench.worker.is_running());
    assert_eq!(bench.process(Event::Queue(1)), "");
    assert_eq!(
        (bench.start(0).as_str(), bench.calls().as_str()),
        (RUNS, STARTED)
    );
    assert!(bench.worker.is_running());
    for event in [Event::Queue(0), Event::Queue(2), Event::Queue(u16::MAX)] {
        assert_eq!(bench.process(event), "");
    }
    assert_eq!(bench.calls(), "", "there are no such queues");
    bench.process(Event::Source(9));
    assert_eq!(bench.calls(), "Source(9)");
    assert_eq!(
        (bench.start(0).as_str(), bench.calls().as_str()),
        ("", ""),
        "it runs"
    );
}

#[test]
fn a_start_that_fails_needs_a_reset() {
    let mut bench = Bench::new();
    bench.plan.lock().unwrap().cannot_start = true;
    assert_eq!(bench.start(0), "broken 0 the device can't start: no");
    assert!(!bench.worker.is_running());
    assert_eq!(bench.calls(), "start");
    assert_eq!(bench.reset(0), "reset 0 [0, 0]");

    let mut activation = bench.activation(1);
    activation.queues[1].as_mut().unwrap().used = 0x1_0000;
    let mut answers = Vec::new();
    let command = Command::Start(activation);
    bench.worker.perform(&mut NoPoller, command, &mut answers);
    let Answer::NeedsReset { epoch: 1, why } = &answers[0] else {
        panic!("{answers:?}");
    };
    assert!(matches!(why, Failure::Queue { queue: 1, .. }), "{why}");
    assert_eq!(bench.calls(), "reset", "the device never heard of it");
}

#[test]
fn a_reset_overtakes_a_start() {
    let mut bench = Bench::new();
    assert_eq!(bench.reset(0), "reset 0 [0, 0]");
    assert_eq!(
        (bench.start(0).as_str(), bench.calls().as_str()),
        ("", "reset")
    );
    assert_eq!(bench.reset(0), "", "it is answered once");
    assert_eq!(bench.start(1), RUNS);
}

#[test]
fn a_reset_waits_for_what_is_in_flight() {
    let mut bench = Bench::new();
    bench.start(0);
    bench.calls();
    bench.plan.lock().unwrap().in_flight = 2;
    assert_eq!(
        (bench.reset(0).as_str(), bench.worker.is_draining()),
        ("", true)
    );
    assert_eq!(bench.reset(0), "");
    assert_eq!(bench.process(Event::Queue(1)), "");
    assert_eq!(bench.process(Event::Source(1)), "");
    // After the reset, the device's error no longer matters.
    bench.plan.lock().unwrap().breaks = true;
    assert_eq!(bench.process(Event::Source(2)), "reset 0 [0, 0]");
    assert_eq!(
        bench.calls(),
        "stop, Source(1), stop, Source(2), stop, reset"
    );
    bench.plan.lock().unwrap().breaks = false;
    assert_eq!(bench.start(1), RUNS);
}

#[test]
fn a_broken_device_gets_no_more_of_its_queues() {
    let mut bench = Bench::new();
    bench.start(0);
    bench.calls();
    *bench.plan.lock().unwrap() = Plan {
        breaks: true,
        in_flight: 1,
        ..Plan::default()
    };
    let broken = "broken 0 the guest's driver broke a rule of virtio: told to";
    assert_eq!(bench.process(Event::Queue(1)), broken);
    assert_eq!(bench.process(Event::Queue(1)), "");
    // It completes the requests in flight, without a report.
    assert_eq!(bench.process(Event::Source(1)), "");
    assert_eq!(bench.calls(), "Queue(1), stop, Source(1), stop");
    assert_eq!(bench.process(Event::Source(1)), "");
    assert_eq!(bench.calls(), "", "nothing is in flight");
    assert_eq!(bench.reset(0), "reset 0 [0, 0]");
}

#[test]
fn a_broken_device_with_requests_in_flight_is_reset_when_they_are_done() {
    let mut bench = Bench::new();
    bench.start(0);
    *bench.plan.lock().unwrap() = Plan {
        breaks: true,
        in_flight: 2,
        ..Plan::default()
    };
    assert!(bench.process(Event::Queue(1)).starts_with("broken"));
    assert_eq!(bench.reset(0), "");
    assert_eq!(bench.process(Event::Source(1)), "reset 0 [0, 0]");
}

#[test]
fn a_write_to_the_configuration_is_answered_whenever_it_arrives() {
    let mut bench = Bench::new();
    let set = |epoch, at, len| Command::SetConfig {
        epoch,
        at,
        data: [7, 8, 9, 0, 0, 0, 0, 0],
        len,
    };
    assert_eq!(bench.perform(set(0, 1, 3)), "set [7, 0]");
    assert_eq!(bench.calls(), "set 1 [7, 8, 9]");
    assert_eq!(bench.reset(0), "reset 0 [0, 0]");
    bench.calls();
    // Its epoch has ended: the device isn't told, but a vCPU may wait.
    assert_eq!(
        (bench.perform(set(0, 1, 3)).as_str(), bench.calls().as_str()),
        ("set [0, 0]", "")
    );
    // No write has this length.
    assert_eq!(
        (bench.perform(set(1, 0, 9)).as_str(), bench.calls().as_str()),
        ("set [0, 0]", "")
    );
}

#[test]
fn a_pause_stops_and_a_resume_starts_where_it_stopped() {
    let mut bench = Bench::new();
    bench.start(0);
    bench.calls();
    assert_eq!(
        (bench.pause(), bench.pause()),
        (Ok(String::new()), Ok(String::new()))
    );
    assert_eq!(
        (bench.calls().as_str(), bench.worker.is_running()),
        ("stop", false)
    );
    bench.process(Event::Queue(1));
    bench.process(Event::Source(1));
    assert_eq!(bench.calls(), "");
    assert_eq!(
        (bench.resume().as_str(), bench.calls().as_str()),
        (RUNS, STARTED)
    );
    assert_eq!(*bench.interrupts.0.lock().unwrap(), [1]);
    assert_eq!((bench.resume().as_str(), bench.calls().as_str()), ("", ""));
}

#[test]
fn a_pause_that_fails_lets_the_device_go_on() {
    let mut bench = Bench::new();
    bench.start(0);
    bench.calls();
    bench.plan.lock().unwrap().in_flight = 1;
    assert_eq!(bench.pause(), Err(NotDrained { in_flight: 1 }));
    assert_eq!(
        (bench.calls().as_str(), bench.worker.is_running()),
        ("stop, Queue(1)", true)
    );
    assert!(bench.pause().is_ok());
}

#[test]
fn a_pause_of_a_reset_that_drains_finishes_it() {
    let mut bench = Bench::new();
    bench.start(0);
    bench.plan.lock().unwrap().in_flight = 2;
    assert_eq!(bench.reset(0), "");
    assert_eq!(bench.pause(), Err(NotDrained { in_flight: 1 }));
    assert_eq!(bench.pause().as_deref(), Ok("reset 0 [0, 0]"));
}

#[test]
fn commands_reach_a_paused_device() {
    let mut bench = Bench::new();
    bench.pause().unwrap();
    assert_eq!(
        (bench.start(0).as_str(), bench.calls().as_str()),
        ("", ""),
        "it starts with a resume"
    );
    assert_eq!(
        (bench.resume().as_str(), bench.calls().as_str()),
        (RUNS, STARTED)
    );
    bench.pause().unwrap();
    bench.calls();
    assert_eq!(bench.reset(0), "reset 0 [0, 0]");
    assert_eq!(
        (bench.resume().as_str(), bench.calls().as_str()),
        (RUNS, "reset")
    );
}

#[test]
fn a_broken_device_starts_after_its_reset_only() {
    let mut bench = Bench::new();
    bench.plan.lock().unwrap().cannot_start = true;
    assert!(bench.start(0).starts_with("broken"));
    bench.plan.lock().unwrap().cannot_start = false;
    bench.calls();
    assert_eq!(bench.start(0), "");
    bench.pause().unwrap();
    assert_eq!(bench.start(0), "");
    assert_eq!(bench.resume(), RUNS, "only the configuration");
    assert_eq!(
        (bench.calls().as_str(), bench.worker.is_running()),
        ("", false)
    );
    assert!(bench.reset(0).starts_with("reset") && bench.start(1) == RUNS);
}

#[test]
fn an_event_that_is_wanted_again_is_handed_out_once() {
    let mut bench = Bench::new();
    bench.plan.lock().unwrap().again = true;
    bench.start(0);
    assert_eq!(
        (bench.worker.again(), bench.worker.again()),
        (Some(Event::Queue(1)), None)
    );
    bench.process(Event::Source(4));
    assert_eq!(
        (bench.worker.again(), bench.worker.again()),
        (Some(Event::Source(4)), None)
    );
}
