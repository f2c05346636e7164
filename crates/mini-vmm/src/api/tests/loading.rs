// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests to a machine that is loading. The load does what the test says.

use super::*;
use crate::api::routes::Awaited;
use crate::api::server::Handler;
use crate::vmm::fake::{Load, is_over};

const START: (&str, &str) = ("/actions", r#"{"action_type": "InstanceStart"}"#);
const STOP: (&str, &str) = ("/actions", r#"{"action_type": "Stop"}"#);
const PAUSE: (&str, &str) = ("/vm", r#"{"state": "Paused"}"#);

/// Sends a request whose answer comes later.
#[track_caller]
fn begin(served: &mut Served, (path, body): (&str, &str)) -> Awaited {
    let method = if path == "/vm" { "PATCH" } else { "PUT" };
    let answer = served.routes.handle(Request {
        method,
        path,
        body: body.as_bytes(),
        stays: true,
    });
    answer.expect_err("an answer that comes later")
}

#[track_caller]
fn is_refused(served: &mut Served, awaited: &mut Awaited, why: &str) {
    let fault = served.routes.take(awaited).unwrap().unwrap_err();
    assert!(fault.message.contains(why), "{fault:?}");
}

/// A machine that a client has ordered.
fn loading() -> (Served, Orders, Awaited, Load) {
    let (mut served, orders) = routes();
    served
        .routes
        .machine
        .draft()
        .unwrap()
        .set_kernel("/dev/null");
    let start = begin(&mut served, START);
    let load = Load::of(&orders);
    (served, orders, start, load)
}

#[test]
fn a_command_waits_for_the_load_and_for_its_failure() {
    let (mut served, _orders, mut start, load) = loading();
    let mut pause = begin(&mut served, PAUSE);
    load.fail(|| {
        // Whether the process ends, too, is not known yet.
        assert_eq!(served.routes.take(&mut pause), None);
        assert_eq!(get(&mut served, "/")["state"], "Not started");
    });
    is_refused(&mut served, &mut pause, "before starting");
    is_refused(&mut served, &mut start, "can't start");
    done(&mut served, "PUT", "/entropy", "{}");
}

#[test]
fn a_stop_outlives_a_load_that_fails() {
    let (mut served, orders, mut start, load) = loading();
    let mut stop = begin(&mut served, STOP);
    load.fail(|| {});
    assert_eq!(served.routes.take(&mut stop), Some(Ok(None)));
    is_refused(&mut served, &mut start, "can't start");
    assert!(is_over(&orders));
}

#[test]
fn a_stop_ends_also_the_next_load() {
    let (mut served, orders, _, load) = loading();
    let mut stop = begin(&mut served, STOP);
    let mut pause = begin(&mut served, PAUSE);
    load.fail(|| {});
    let mut second = begin(&mut served, START);
    let load = Load::of(&orders);
    assert_eq!(served.routes.take(&mut stop), None);
    assert!(load.is_stopped());
    assert_eq!(served.routes.take(&mut stop), Some(Ok(None)));
    is_refused(&mut served, &mut pause, "before starting");
    drop(load);
    is_refused(&mut served, &mut second, "has ended");
}

#[test]
fn a_client_that_is_gone_leaves_its_start_to_the_others() {
    let (mut served, _orders, start, load) = loading();
    drop(start);
    let body = START.1;
    refused(&mut served, ("PUT", "/actions", body), 400, "still loading");
    load.fail(|| {});
    assert_eq!(get(&mut served, "/")["state"], "Not started");
    done(&mut served, "PUT", "/entropy", "{}");
}

#[test]
fn commands_that_nobody_awaits_are_bounded() {
    let (mut served, _orders, _start, load) = loading();
    for _ in 0..128 {
        drop(begin(&mut served, PAUSE));
    }
    let fault = ask(&mut served, "PATCH", PAUSE.0, PAUSE.1).unwrap_err();
    assert!(
        fault.message.contains("wait for their answers"),
        "{fault:?}"
    );
    let mut stop = begin(&mut served, STOP);
    assert!(load.is_stopped());
    assert_eq!(served.routes.take(&mut stop), Some(Ok(None)));
}
