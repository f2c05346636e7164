// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests to a machine that is loading. The load does what the test says.

use std::thread;

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
    let method = match path == "/actions" {
        true => "PUT",
        false => "PATCH",
    };
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
    let mut late = None;
    load.fail(|| {
        // Whether the process ends, too, is not known yet.
        assert_eq!(served.routes.take(&mut pause), None);
        assert_eq!(get(&mut served, "/")["state"], "Not started");
        late = Some(begin(&mut served, PAUSE));
    });
    for pause in [&mut pause, &mut late.unwrap()] {
        is_refused(&mut served, pause, "before starting");
    }
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
fn a_stop_while_a_load_fails_ends_the_process() {
    let (mut served, orders, mut start, load) = loading();
    let mut stop = None;
    load.fail(|| stop = Some(begin(&mut served, STOP)));
    assert_eq!(served.routes.take(&mut stop.unwrap()), Some(Ok(None)));
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

/// What happens to a machine that may be loading.
#[derive(Clone, Copy, Debug)]
enum Move {
    Start,
    Pause,
    Stop,
    /// The client that has waited for longest goes.
    Vanish,
    Succeed,
    Fail,
}

/// The phases of a process whose loads are moves, too.
struct Process {
    served: Served,
    orders: Orders,
    load: Option<Load>,
    run: Option<thread::JoinHandle<()>>,
    awaited: Vec<Awaited>,
    /// Whether a client has paused the machine that is loading.
    is_paused: bool,
}

impl Process {
    /// Sends a request. Returns whether it was not refused at once.
    fn ask(&mut self, (path, body): (&str, &str)) -> bool {
        let method = match path == "/actions" {
            true => "PUT",
            false => "PATCH",
        };
        let answer = self.served.routes.handle(Request {
            method,
            path,
            body: body.as_bytes(),
            stays: true,
        });
        match answer {
            Ok(answer) => answer.is_ok(),
            Err(awaited) => {
                self.awaited.push(awaited);
                true
            }
        }
    }

    /// Waits for all promised answers. A lost one would take forever.
    fn settle(&mut self) {
        while !self.awaited.is_empty() {
            let routes = &mut self.served.routes;
            self.awaited
                .retain_mut(|awaited| routes.take(awaited).is_none());
            if !self.awaited.is_empty() {
                self.served.wait();
            }
        }
    }

    /// Makes a move. Returns the state's name, as `GET /` has it, or `None` after the end.
    fn make(&mut self, state: Option<&'static str>, next: Move) -> Option<&'static str> {
        let is_loading = self.load.is_some();
        let can_start = state == Some("Not started") && !is_loading;
        let has_machine = is_loading || matches!(state, Some("Running" | "Paused"));
        match next {
            Move::Start => {
                assert_eq!(self.ask(START), can_start);
                if can_start {
                    self.load = Some(Load::of(&self.orders));
                }
                state
            }
            Move::Pause => {
                assert_eq!(self.ask(PAUSE), has_machine);
                if is_loading {
                    self.is_paused = true;
                    return state;
                }
                self.settle();
                if has_machine { Some("Paused") } else { state }
            }
            Move::Stop => {
                assert_eq!(self.ask(STOP), state.is_some());
                if let Some(load) = self.load.take() {
                    assert!(load.is_stopped());
                    drop(load);
                }
                self.settle();
                None
            }
            Move::Vanish if self.awaited.is_empty() => state,
            Move::Vanish => {
                self.awaited.remove(0);
                state
            }
            Move::Succeed => {
                let Some(load) = self.load.take() else {
                    return state;
                };
                self.run = Some(thread::spawn(|| load.succeed()));
                // After the commands that waited, also those of clients that are gone.
                assert!(self.ask(("/actions", r#"{"action_type": "SendCtrlAltDel"}"#)));
                self.settle();
                Some(if self.is_paused { "Paused" } else { "Running" })
            }
            Move::Fail => {
                if let Some(load) = self.load.take() {
                    load.fail(|| {});
                    self.is_paused = false;
                    self.settle();
                }
                state
            }
        }
    }
}

proptest! {
    #[test]
    fn no_moves_leave_an_answer_out_or_a_wrong_state(
        moves in prop::collection::vec(prop::sample::select(vec![
            Move::Start, Move::Start, Move::Pause, Move::Stop, Move::Vanish, Move::Succeed, Move::Fail,
        ]), 0..25),
    ) {
        let (mut served, orders) = routes();
        served.routes.machine.draft().unwrap().set_kernel("/dev/null");
        let mut process = Process {
            served,
            orders,
            load: None,
            run: None,
            awaited: Vec::new(),
            is_paused: false,
        };
        let mut state = Some("Not started");
        for next in moves {
            state = process.make(state, next);
            match ask(&mut process.served, "GET", "/", "") {
                Ok(Some(Data::Json(about))) => prop_assert_eq!(about["state"].as_str(), state),
                other => prop_assert!(state.is_none() && other.is_err(), "{:?}: {:?}", next, other),
            }
        }
        // Ends what still runs.
        drop(process.load.take());
        let _ = ask(&mut process.served, "PUT", STOP.0, STOP.1);
        drop(process.served);
        if let Some(run) = process.run {
            run.join().unwrap();
        }
    }
}

#[test]
fn a_playground_loads_until_a_client_waits() {
    let get = "GET / HTTP/1.1\r\n\r\n";
    let pause = "PATCH /vm HTTP/1.1\r\nContent-Length: 19\r\n\r\n{\"state\": \"Paused\"}";
    for (succeeds, answer, state) in [(true, "204", "Paused"), (false, "400", "Not started")] {
        let mut machine = crate::api::playground::Playground::loading(succeeds);
        let answers = machine.talk(format!("{get}{pause}{get}").as_bytes(), 7);
        let answers = String::from_utf8(answers).unwrap();
        let seen = ["Not started", answer, state];
        let mut rest = answers.as_str();
        for text in seen {
            let at = rest
                .find(text)
                .unwrap_or_else(|| panic!("{text}: {answers}"));
            rest = &rest[at + text.len()..];
        }
    }
}

/// The path of the disk `a`, and the limits of the network `n`.
fn devices(served: &mut Served) -> (String, Value) {
    let config = get(served, "/vm/config");
    let path = config["drives"][0]["path_on_host"].as_str().unwrap();
    (
        path.to_owned(),
        config["network-interfaces"][0]["rx_rate_limiter"].clone(),
    )
}

#[test]
fn a_change_that_comes_to_nothing_is_not_in_the_description() {
    let files = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
    files
        .iter()
        .for_each(|file| file.as_file().set_len(512).unwrap());
    let [old, new] = files.each_ref().map(|file| file.path().to_str().unwrap());
    let (mut served, orders) = routes();
    let drive = format!(r#"{{"path_on_host": "{old}", "is_root_device": false}}"#);
    done(&mut served, "PUT", "/drives/a", &drive);
    let net = r#"{"host_dev_name": "tap0"}"#;
    done(&mut served, "PUT", "/network-interfaces/n", net);
    served
        .routes
        .machine
        .draft()
        .unwrap()
        .set_kernel("/dev/null");
    let before = devices(&mut served);
    assert_eq!(before, (old.to_owned(), Value::Null));
    let path = format!(r#"{{"path_on_host": "{new}"}}"#);
    let limiter = r#"{"rx_rate_limiter": {"ops": {"size": 1, "refill_time": 1}}}"#;
    let patches = [("/drives/a", &*path), ("/network-interfaces/n", limiter)];
    // A start that fails takes them with it, also if their clients are gone.
    for stays in [true, false] {
        let mut start = begin(&mut served, START);
        let load = Load::of(&orders);
        let mut awaited = patches.map(|patch| begin(&mut served, patch));
        assert_ne!(devices(&mut served), before);
        load.fail(|| {});
        if stays {
            for patch in &mut awaited {
                is_refused(&mut served, patch, "before starting");
            }
        }
        assert_eq!(devices(&mut served), before);
        is_refused(&mut served, &mut start, "can't start");
    }
    // Too many commands wait.
    let _start = begin(&mut served, START);
    let _load = Load::of(&orders);
    let waiting: Vec<_> = (0..128).map(|_| begin(&mut served, PAUSE)).collect();
    for (at, body) in patches {
        refused(&mut served, ("PATCH", at, body), 400, "many commands wait");
    }
    assert_eq!(devices(&mut served), before);
    drop(waiting);
}
