// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random sequences of calls, compared with a model of the states.

use super::*;
use crate::api::playground::Playground;

/// The states that clients can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    NotStarted { has_kernel: bool },
    Running,
    Paused,
    Ended,
}

use State::{Ended, NotStarted, Paused, Running};

/// What a call asks for.
#[derive(Clone, Copy, Debug)]
enum Call {
    /// Describes something.
    Describe(&'static str, &'static str, &'static str),
    /// Names a kernel.
    Kernel,
    Start,
    Stop,
    Button,
    Pause,
    Resume,
    Resize,
    Counters,
    /// Has a mistake in it.
    Wrong(&'static str, &'static str, &'static str),
}

const CALLS: [Call; 17] = [
    Call::Describe(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count": 2, "mem_size_mib": 64}"#,
    ),
    Call::Describe("PATCH", "/machine-config", r#"{"vcpu_count": 3}"#),
    Call::Describe("PUT", "/entropy", "{}"),
    Call::Describe(
        "PUT",
        "/drives/a",
        r#"{"path_on_host": "/dev/null", "is_root_device": true}"#,
    ),
    Call::Describe("PATCH", "/options", r#"{"on-reboot": "reset"}"#),
    Call::Kernel,
    Call::Start,
    Call::Start,
    Call::Stop,
    Call::Button,
    Call::Pause,
    Call::Pause,
    Call::Resume,
    Call::Resize,
    Call::Counters,
    Call::Wrong("PATCH", "/vm", r#"{"state": "Running"}"#),
    Call::Wrong(
        "PUT",
        "/machine-config",
        r#"{"vcpu_count": 0, "mem_size_mib": 64}"#,
    ),
];

impl Call {
    fn request(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Call::Describe(method, path, body) | Call::Wrong(method, path, body) => {
                (method, path, body)
            }
            Call::Kernel => (
                "PUT",
                "/boot-source",
                r#"{"kernel_image_path": "/dev/null"}"#,
            ),
            Call::Start => ("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#),
            Call::Stop => ("PUT", "/actions", r#"{"action_type": "Stop"}"#),
            Call::Button => ("PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#),
            Call::Pause => ("PATCH", "/vm", r#"{"state": "Paused"}"#),
            Call::Resume => ("PATCH", "/vm", r#"{"state": "Resumed"}"#),
            Call::Resize => ("PATCH", "/drives/a", "{}"),
            Call::Counters => ("GET", "/vm", ""),
        }
    }

    /// The state that it leads to, or `None` if it is refused. `has_disk` says whether there is a disk named `a`.
    fn next(self, state: State, has_disk: bool) -> Option<State> {
        let is_started = matches!(state, Running | Paused);
        match self {
            Call::Describe(..) => matches!(state, NotStarted { .. }).then_some(state),
            Call::Kernel => match state {
                NotStarted { .. } => Some(NotStarted { has_kernel: true }),
                _ => None,
            },
            Call::Start => (state == NotStarted { has_kernel: true }).then_some(Running),
            Call::Stop => (state != Ended).then_some(Ended),
            Call::Pause => is_started.then_some(Paused),
            Call::Resume => is_started.then_some(Running),
            Call::Resize => (is_started && has_disk).then_some(state),
            Call::Button | Call::Counters => is_started.then_some(state),
            Call::Wrong(..) => None,
        }
    }
}

/// What `GET /` says. `None` is a fault.
fn shown(state: State) -> Option<&'static str> {
    match state {
        NotStarted { .. } => Some("Not started"),
        Running => Some("Running"),
        Paused => Some("Paused"),
        Ended => None,
    }
}

/// Makes the calls. Returns the last state.
fn check(calls: &[usize]) -> State {
    let mut machine = Playground::default();
    let routes = machine.served();
    let mut state = NotStarted { has_kernel: false };
    for call in calls.iter().map(|at| CALLS[*at]) {
        let before = get(routes, "/vm/config");
        let has_disk = before["drives"]
            .as_array()
            .is_some_and(|drives| !drives.is_empty());
        let next = call.next(state, has_disk);
        let (method, path, body) = call.request();
        let answer = ask(routes, method, path, body);
        assert_eq!(
            answer.is_ok(),
            next.is_some(),
            "{state:?}, {call:?}: {answer:?}"
        );
        let describes = matches!(call, Call::Describe(..) | Call::Kernel) && answer.is_ok();
        state = next.unwrap_or(state);
        match ask(routes, "GET", "/", "") {
            Ok(Some(Data::Json(about))) => {
                assert_eq!(about["state"].as_str(), shown(state), "{call:?}")
            }
            other => assert!(
                shown(state).is_none() && other.is_err(),
                "{call:?}: {other:?}"
            ),
        }
        if !describes {
            assert_eq!(
                get(routes, "/vm/config"),
                before,
                "{call:?} changed the description"
            );
        }
    }
    state
}

proptest! {
    #[test]
    fn no_sequence_of_calls_leaves_the_model(calls in prop::collection::vec(0..CALLS.len(), 0..40)) {
        check(&calls);
    }
}

#[test]
fn the_model_has_every_state() {
    let at = |wanted: &str| {
        let found = |call: &Call| format!("{call:?}") == wanted;
        CALLS.iter().position(found).unwrap()
    };
    let start = [at("Kernel"), at("Start")];
    assert_eq!(check(&[]), NotStarted { has_kernel: false });
    assert_eq!(check(&start), Running);
    assert_eq!(
        check(&[&start[..], &[at("Pause"), at("Start")]].concat()),
        Paused
    );
    assert_eq!(
        check(&[&start[..], &[at("Pause"), at("Resume")]].concat()),
        Running
    );
    assert_eq!(
        check(&[&start[..], &[at("Stop"), at("Kernel")]].concat()),
        Ended
    );
    assert_eq!(check(&[at("Stop"), at("Start")]), Ended);
}
