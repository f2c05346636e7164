// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a vCPU thread does with a request: a pure function, so that every case can be tested.

use std::fmt;

/// Where a vCPU's thread stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing is pending, no guest code runs. Threads start here.
    Paused,
    /// The guest runs, or waits in a `hlt` for [`Request::Wake`].
    Running,
    /// The guest ended this vCPU: triple fault, system event, or an exit that KVM can't continue from.
    /// Only a restored state brings it back.
    Ended,
    /// The host failed or the thread's code panicked: vCPU and devices may be half-way through anything.
    /// It can only be stopped.
    Failed,
    /// The thread is gone or about to go.
    Stopped,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Paused => "paused",
            State::Running => "running",
            State::Ended => "ended",
            State::Failed => "failed",
            State::Stopped => "stopped",
        })
    }
}

/// What a controller asks of a vCPU's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Enter the guest.
    Resume,
    /// Leave the guest, with nothing pending.
    Pause,
    /// Take the state.
    Save,
    /// Replace the state.
    Restore,
    /// Leave `hlt` (no in-kernel LAPIC).
    Wake,
    /// Run the controller's own code on the vCPU.
    Call,
    /// Show registers and instruction bytes.
    Dump,
    /// Leave the guest and end the thread.
    Stop,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Request::Resume => "resume",
            Request::Pause => "pause",
            Request::Save => "save",
            Request::Restore => "restore",
            Request::Wake => "wake",
            Request::Call => "call",
            Request::Dump => "dump",
            Request::Stop => "stop",
        })
    }
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Response {
    /// Done, or true already.
    Done,
    /// Not in this state.
    Refused(State),
}

/// The state after a request, and its answer. A refused request changes nothing.
///
/// `Pause` is granted to ended and failed vCPUs, which run nothing, so that the others can be paused
/// with them. Save needs `Paused`: a running vCPU's registers are stale, an ended one's are of no use.
pub const fn step(state: State, request: Request) -> (State, Response) {
    use Request::*;
    let next = match (state, request) {
        (State::Stopped, Stop) => State::Stopped,
        (State::Stopped, _) => return (state, Response::Refused(state)),
        (_, Stop) => State::Stopped,
        (State::Paused | State::Running, Resume) => State::Running,
        (State::Paused | State::Running, Pause) => State::Paused,
        (State::Ended | State::Failed, Pause) => state,
        (State::Paused, Save | Call) => State::Paused,
        (State::Paused | State::Ended, Restore) => State::Paused,
        (State::Paused | State::Running, Wake) => state,
        (State::Paused | State::Ended, Dump) => state,
        _ => return (state, Response::Refused(state)),
    };
    (next, Response::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_request() -> impl Strategy<Value = Request> {
        prop::sample::select(vec![
            Request::Resume,
            Request::Pause,
            Request::Save,
            Request::Restore,
            Request::Wake,
            Request::Call,
            Request::Dump,
            Request::Stop,
        ])
    }

    fn any_state() -> impl Strategy<Value = State> {
        prop::sample::select(vec![
            State::Paused,
            State::Running,
            State::Ended,
            State::Failed,
            State::Stopped,
        ])
    }

    proptest! {
        #[test]
        fn refusals_change_nothing(state in any_state(), request in any_request()) {
            let (next, response) = step(state, request);
            if let Response::Refused(seen) = response {
                prop_assert_eq!(next, state);
                prop_assert_eq!(seen, state);
            }
        }

        #[test]
        fn requests_are_idempotent(state in any_state(), request in any_request()) {
            let (next, response) = step(state, request);
            prop_assert_eq!(step(next, request), (next, match response {
                Response::Done => Response::Done,
                Response::Refused(_) => Response::Refused(next),
            }));
        }

        #[test]
        fn only_a_paused_vcpu_is_saved(state in any_state()) {
            let saved = step(state, Request::Save).1 == Response::Done;
            prop_assert_eq!(saved, state == State::Paused);
        }

        #[test]
        fn stop_always_wins_and_is_final(
            state in any_state(),
            before in prop::collection::vec(any_request(), 0..20),
            after in prop::collection::vec(any_request(), 0..20),
        ) {
            let run = |s, rs: &[Request]| rs.iter().fold(s, |s, r| step(s, *r).0);
            let stopped = step(run(state, &before), Request::Stop);
            prop_assert_eq!(stopped, (State::Stopped, Response::Done));
            prop_assert_eq!(run(stopped.0, &after), State::Stopped);
        }

        #[test]
        fn nothing_but_stop_leaves_failed_and_nothing_but_restore_or_stop_leaves_ended(
            requests in prop::collection::vec(any_request(), 0..20),
        ) {
            let mut failed = State::Failed;
            let mut ended = State::Ended;
            for request in requests {
                if request == Request::Stop { break; }
                failed = step(failed, request).0;
                prop_assert_eq!(failed, State::Failed);
                if request == Request::Restore { break; }
                ended = step(ended, request).0;
                prop_assert_eq!(ended, State::Ended);
            }
        }

        #[test]
        fn running_is_entered_by_resume_only(state in any_state(), request in any_request()) {
            let (next, _) = step(state, request);
            if next == State::Running && state != State::Running {
                prop_assert_eq!((state, request), (State::Paused, Request::Resume));
            }
        }
    }
}
