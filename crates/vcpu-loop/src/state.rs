// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The state machine of a vCPU's thread: a pure function, so that every case can be tested.

use std::fmt;

/// The state of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Nothing is pending, no guest code runs. Threads start here.
    Paused,
    /// The guest runs, or waits in a `hlt` for [`Request::Wake`].
    Running,
    /// Like [`State::Paused`], but the vCPU stopped by itself: a device answered
    /// [`Next::Pause`](crate::Next::Pause), it hit a breakpoint, or the dirty ring is full. It refuses
    /// [`Request::Resume`] until [`Request::Acknowledge`].
    SelfPaused,
    /// The guest ended this vCPU: triple fault, system event, or an exit that KVM can't continue from.
    /// Only a restored state makes it runnable.
    Ended,
    /// The host failed, or code on the thread panicked. vCPU and devices may be in the middle of anything, so it can
    /// only be stopped.
    Failed,
    /// The thread is gone or about to go.
    Stopped,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Paused => "paused",
            State::Running => "running",
            State::SelfPaused => "paused by itself and not acknowledged",
            State::Ended => "ended",
            State::Failed => "failed",
            State::Stopped => "stopped",
        })
    }
}

/// What a controller asks of a vCPU's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Request {
    /// Enter the guest.
    Resume,
    /// Leave the guest, with nothing pending.
    Pause,
    /// Acknowledge that the vCPU stopped by itself. It can be resumed afterwards.
    Acknowledge,
    /// Save the state.
    Save,
    /// Replace the state.
    Restore,
    /// Leave `hlt` (no in-kernel LAPIC).
    Wake,
    /// Run the controller's code on a paused vCPU.
    Access,
    /// Run the controller's code on a paused or running vCPU.
    Call,
    /// Read registers and instruction bytes.
    Dump,
    /// Leave the guest and end the thread.
    Stop,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Request::Resume => "resume",
            Request::Pause => "pause",
            Request::Acknowledge => "acknowledge",
            Request::Save => "save",
            Request::Restore => "restore",
            Request::Wake => "wake",
            Request::Access => "access",
            Request::Call => "call",
            Request::Dump => "dump",
            Request::Stop => "stop",
        })
    }
}

/// What happens to a vCPU without a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Incident {
    /// It stopped by itself, and can continue.
    SelfPause,
    /// The guest ended it, or a restore failed after its first change.
    End,
    /// The host failed, or code on the thread panicked.
    Failure,
}

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Response {
    /// Granted, or already so.
    Done,
    /// Not possible in this state.
    Refused(State),
}

/// The state after a request, and its answer. A refused request changes nothing.
///
/// `Pause` is granted to vCPUs that stopped by themselves, ended or failed, because they run nothing; so a pause of all
/// vCPUs succeeds. A later `Resume` for all does not resume them. `Save` needs a paused vCPU: a running one's registers
/// are stale, and an ended one's are useless.
pub const fn step(state: State, request: Request) -> (State, Response) {
    use Request::*;
    let next = match (state, request) {
        (State::Stopped, Stop) => State::Stopped,
        (State::Stopped, _) => return (state, Response::Refused(state)),
        (_, Stop) => State::Stopped,
        (State::Paused | State::Running, Resume) => State::Running,
        (State::Paused | State::Running, Pause) => State::Paused,
        (State::SelfPaused | State::Ended | State::Failed, Pause) => state,
        (State::Paused | State::SelfPaused, Acknowledge) => State::Paused,
        (State::Paused | State::SelfPaused, Save | Access) => state,
        (State::Paused | State::SelfPaused | State::Running, Call) => state,
        (State::Paused | State::SelfPaused | State::Ended, Restore) => State::Paused,
        (State::Paused | State::SelfPaused | State::Running, Wake) => state,
        (State::Paused | State::SelfPaused | State::Ended, Dump) => state,
        _ => return (state, Response::Refused(state)),
    };
    (next, Response::Done)
}

/// The state after an incident.
pub const fn occur(state: State, incident: Incident) -> State {
    match (state, incident) {
        (State::Failed | State::Stopped, _) => state,
        (_, Incident::Failure) => State::Failed,
        (_, Incident::End) => State::Ended,
        (State::Running, Incident::SelfPause) => State::SelfPaused,
        (_, Incident::SelfPause) => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_request() -> impl Strategy<Value = Request> {
        prop::sample::select(vec![
            Request::Resume,
            Request::Pause,
            Request::Acknowledge,
            Request::Save,
            Request::Restore,
            Request::Wake,
            Request::Access,
            Request::Call,
            Request::Dump,
            Request::Stop,
        ])
    }

    fn any_incident() -> impl Strategy<Value = Incident> {
        prop::sample::select(vec![Incident::SelfPause, Incident::End, Incident::Failure])
    }

    fn any_state() -> impl Strategy<Value = State> {
        prop::sample::select(vec![
            State::Paused,
            State::Running,
            State::SelfPaused,
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
            prop_assert_eq!(saved, matches!(state, State::Paused | State::SelfPaused));
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

        #[test]
        fn a_vcpu_that_stopped_by_itself_runs_only_once_that_is_acknowledged(
            requests in prop::collection::vec(any_request(), 0..20),
        ) {
            let mut state = occur(State::Running, Incident::SelfPause);
            for request in requests {
                if matches!(request, Request::Acknowledge | Request::Restore | Request::Stop) { break; }
                state = step(state, request).0;
                prop_assert_eq!(state, State::SelfPaused);
            }
            prop_assert_eq!(step(state, Request::Acknowledge).0, State::Paused);
        }

        #[test]
        fn incidents_start_no_guest_and_undo_no_end(state in any_state(), incident in any_incident()) {
            let next = occur(state, incident);
            prop_assert!(next == state || next != State::Running);
            prop_assert_eq!(occur(next, incident), next);
            if matches!(state, State::Failed | State::Stopped) {
                prop_assert_eq!(next, state);
            }
            if state == State::Ended {
                prop_assert!(matches!(next, State::Ended | State::Failed));
            }
        }
    }
}
