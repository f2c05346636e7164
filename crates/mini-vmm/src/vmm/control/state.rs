// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How commands change the state of a run: a pure function, so that every case can be tested.

use std::fmt;

use super::change::{BalloonChange, DiskChange, NetChange};
use crate::devices::NewDevice;
use crate::snapshot::{Kind, Labels, Place};

/// The state of a run. A reset replaces the machine; the run continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// No guest code runs, and devices take no input from outside. Runs start here.
    Paused,
    /// The guest runs.
    Running,
    /// The guest runs, and a signal has asked it to power off. It can't be paused any more, because its time is
    /// limited. A reset or another signal ends the run.
    PoweringOff,
    /// The run is over or about to end. Its [`Outcome`](crate::outcome::Outcome) says how.
    Ended,
}

impl State {
    /// Whether guest code runs.
    pub const fn is_running(self) -> bool {
        matches!(self, State::Running | State::PoweringOff)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Paused => "paused",
            State::Running => "running",
            State::PoweringOff => "about to power off, as a signal told it",
            State::Ended => "ended",
        })
    }
}

/// A request to a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Command {
    /// Take the vCPUs out of the guest with no access pending, then stop the input of the devices.
    Pause,
    /// Let the guest run.
    Resume,
    /// Press the guest's power button. A paused guest notices it after it resumes.
    PowerButton,
    /// Look at the sizes of the disks' images, and tell the guest about new ones. A disk that no driver uses, or that is
    /// paused, does so when it starts.
    ResizeDisks,
    /// Change the image or the limits of a disk.
    ChangeDisk(DiskChange),
    /// Change the limits of a network.
    LimitNet(NetChange),
    /// Add a device in a slot, and tell the guest.
    AddDevice(Box<NewDevice>),
    /// Remove the device in a slot. The answer comes when the guest has given it up.
    RemoveDevice {
        /// The slot.
        slot: u8,
        /// Whether it is taken from the guest at once, even if the guest uses it.
        force: bool,
    },
    /// Change the balloon.
    ChangeBalloon(BalloonChange),
    /// Report what is known about the balloon.
    AskBalloon(Asked),
    /// End the run with [`Outcome::Stopped`](crate::outcome::Outcome::Stopped), unless it has another outcome already.
    Stop,
    /// Save the state of all but memory. The guest must be paused.
    Save,
    /// Write a snapshot. The machine then is in the state that [`SnapshotOrder::then`] says; after a failure it is in its
    /// old state.
    Snapshot(SnapshotOrder),
    /// Report the machine, its state and its counters.
    Describe,
    /// List pages of guest memory. The guest must be paused.
    ListMemory(Listing),
}

/// What is asked about a balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asked {
    /// Its sizes and the guest's statistics.
    Statistics,
    /// How far a round of hints is.
    Hinting,
}

/// Which pages of guest memory are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Listing {
    /// Those that may have changed since the last snapshot, or since the machine was restored or started.
    Dirty,
    /// Those that this process has in memory or swap.
    Resident,
}

/// A snapshot that is to be written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SnapshotOrder {
    /// Where.
    pub place: Place,
    /// Which pages it has. A machine without a snapshot has no Diff, and gets a Full one.
    pub kind: Kind,
    /// What happens to the machine.
    pub then: Then,
    /// What clients call its devices.
    pub labels: Labels,
}

/// What happens to a machine whose snapshot is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Then {
    /// It must be paused, and stays so.
    StayPaused,
    /// It is paused, and stays so.
    Pause,
    /// It is paused meanwhile. If it ran, it goes on.
    GoOn,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Command::Pause => "pause",
            Command::Resume => "resume",
            Command::PowerButton => "press the power button of",
            Command::ResizeDisks => "resize the disks of",
            Command::ChangeDisk(_) => "change a disk of",
            Command::LimitNet(_) => "limit a network of",
            Command::AddDevice(_) => "add a device to",
            Command::RemoveDevice { .. } => "remove a device of",
            Command::ChangeBalloon(_) => "change the balloon of",
            Command::AskBalloon(_) => "ask about the balloon of",
            Command::Stop => "stop",
            Command::Save => "save",
            Command::Snapshot(_) => "write a snapshot of",
            Command::Describe => "describe",
            Command::ListMemory(_) => "list the memory of",
        })
    }
}

/// An event that changes the state of a run without a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Incident {
    /// The process received a termination signal.
    Signal,
    /// The guest requested a reset, and gets it: a new machine.
    Reset,
    /// The run has an outcome that ends it.
    End,
}

/// Whether a command is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Response {
    /// Do it. Doing it again has no effect.
    Do,
    /// The command is not possible in this state.
    Refused(State),
}

/// The state after a command succeeded, and whether to do it. A refused command changes nothing.
pub const fn step(state: State, command: &Command) -> (State, Response) {
    use Command::*;
    let next = match (state, command) {
        (State::Ended, _) => return (state, Response::Refused(state)),
        (_, Stop) => State::Ended,
        (State::Paused | State::Running, Pause) => State::Paused,
        (State::Paused | State::Running, Resume) => State::Running,
        (State::PoweringOff, Resume) => state,
        (State::Paused, Save | ListMemory(_)) => state,
        (State::Running, Snapshot(order)) => match order.then {
            Then::StayPaused => return (state, Response::Refused(state)),
            Then::Pause => State::Paused,
            Then::GoOn => state,
        },
        (State::Paused, Snapshot(_)) => state,
        (_, PowerButton | ResizeDisks | ChangeDisk(_) | LimitNet(_) | Describe) => state,
        (_, AddDevice(_) | RemoveDevice { .. }) => state,
        (_, ChangeBalloon(_) | AskBalloon(_)) => state,
        (State::PoweringOff, Pause | Snapshot(_))
        | (State::Running | State::PoweringOff, Save | ListMemory(_)) => {
            return (state, Response::Refused(state));
        }
    };
    (next, Response::Do)
}

/// The state after an incident.
///
/// A signal resumes a paused guest, so that it can power off. A reset keeps a paused guest paused: the new machine
/// waits for [`Command::Resume`].
pub const fn occur(state: State, incident: Incident) -> State {
    match (state, incident) {
        (State::Ended, _) | (_, Incident::End) => State::Ended,
        (State::PoweringOff, Incident::Signal | Incident::Reset) => State::Ended,
        (State::Paused | State::Running, Incident::Signal) => State::PoweringOff,
        (State::Paused | State::Running, Incident::Reset) => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use virtio_models::rate::Limits;

    use crate::config::DeviceAt;

    fn snapshot(then: Then) -> Command {
        let place = Place::Directory("snap".into());
        let labels = Labels::default();
        Command::Snapshot(SnapshotOrder {
            place,
            kind: Kind::Full,
            then,
            labels,
        })
    }

    fn commands() -> Vec<Command> {
        vec![
            Command::Pause,
            Command::Resume,
            Command::PowerButton,
            Command::ResizeDisks,
            Command::RemoveDevice {
                slot: 31,
                force: false,
            },
            Command::ChangeDisk(DiskChange {
                disk: DeviceAt::Number(0),
                image: None,
                limits: None,
            }),
            Command::LimitNet(NetChange {
                net: DeviceAt::Number(0),
                rx: Limits::default(),
                tx: Limits::default(),
            }),
            Command::ChangeBalloon(BalloonChange::default()),
            Command::AskBalloon(Asked::Statistics),
            Command::Stop,
            Command::Save,
            Command::ListMemory(Listing::Dirty),
            Command::Describe,
            snapshot(Then::StayPaused),
            snapshot(Then::Pause),
            snapshot(Then::GoOn),
        ]
    }

    fn any_command() -> impl Strategy<Value = Command> {
        prop::sample::select(commands())
    }

    fn any_incident() -> impl Strategy<Value = Incident> {
        prop::sample::select(vec![Incident::Signal, Incident::Reset, Incident::End])
    }

    fn any_state() -> impl Strategy<Value = State> {
        prop::sample::select(vec![
            State::Paused,
            State::Running,
            State::PoweringOff,
            State::Ended,
        ])
    }

    /// A command, or an incident.
    fn any_move() -> impl Strategy<Value = Result<Command, Incident>> {
        prop_oneof![any_command().prop_map(Ok), any_incident().prop_map(Err)]
    }

    fn after(state: State, by: Result<Command, Incident>) -> State {
        match by {
            Ok(command) => step(state, &command).0,
            Err(incident) => occur(state, incident),
        }
    }

    proptest! {
        #[test]
        fn refusals_change_nothing(state in any_state(), command in any_command()) {
            let (next, response) = step(state, &command);
            if let Response::Refused(seen) = response {
                prop_assert_eq!((next, seen), (state, state));
            }
        }

        #[test]
        fn commands_but_the_last_are_idempotent(state in any_state(), command in any_command()) {
            let (next, response) = step(state, &command);
            if next != State::Ended {
                let again = step(next, &command);
                prop_assert_eq!(again.0, next);
                prop_assert_eq!(again.1 == Response::Do, response == Response::Do);
            }
        }

        #[test]
        fn the_end_is_final_and_refuses_all(moves in prop::collection::vec(any_move(), 0..20)) {
            let mut state = State::Ended;
            for by in moves {
                state = after(state, by);
                prop_assert_eq!(state, State::Ended);
            }
            for command in commands() {
                prop_assert_eq!(step(state, &command).1, Response::Refused(State::Ended));
            }
        }

        #[test]
        fn stop_ends_whatever_lives(state in any_state()) {
            let (next, response) = step(state, &Command::Stop);
            prop_assert_eq!(next, State::Ended);
            prop_assert_eq!(response == Response::Do, state != State::Ended);
        }

        #[test]
        fn only_a_paused_guest_is_saved(state in any_state()) {
            for command in [Command::Save, Command::ListMemory(Listing::Resident)] {
                let is_done = step(state, &command).1 == Response::Do;
                prop_assert_eq!(is_done, state == State::Paused);
            }
        }

        #[test]
        fn a_snapshot_is_of_a_machine_that_is_paused_or_may_be(state in any_state()) {
            for then in [Then::StayPaused, Then::Pause, Then::GoOn] {
                let (next, response) = step(state, &snapshot(then));
                let expected = match (state, then) {
                    (State::Paused, _) => Some(State::Paused),
                    (State::Running, Then::Pause) => Some(State::Paused),
                    (State::Running, Then::GoOn) => Some(State::Running),
                    _ => None,
                };
                prop_assert_eq!(response == Response::Do, expected.is_some());
                prop_assert_eq!(next, expected.unwrap_or(state));
            }
        }

        /// Whatever else happens, even a reset: a paused guest stays paused.
        #[test]
        fn a_paused_guest_runs_only_by_a_resume_or_a_signal(moves in prop::collection::vec(any_move(), 0..20)) {
            let mut state = State::Paused;
            for by in moves {
                let next = after(state, by.clone());
                if state == State::Paused && next.is_running() {
                    let why = matches!(by, Ok(Command::Resume) | Err(Incident::Signal));
                    prop_assert!(why, "{by:?}");
                }
                state = next;
            }
        }

        /// Two signals end the run, and so does one if the guest resets, whatever commands come in between.
        #[test]
        fn a_guest_that_is_told_to_power_off_is_not_held_up(
            state in any_state(),
            commands in prop::collection::vec(any_command(), 0..20),
            last in prop::sample::select(vec![Incident::Signal, Incident::Reset, Incident::End]),
        ) {
            let mut state = occur(state, Incident::Signal);
            prop_assert_ne!(state, State::Paused);
            for command in commands {
                state = step(state, &command).0;
                prop_assert!(matches!(state, State::PoweringOff | State::Ended), "{state:?}");
            }
            prop_assert_eq!(occur(state, last), State::Ended);
        }

        #[test]
        fn a_reset_starts_and_pauses_nobody(state in any_state()) {
            let next = occur(state, Incident::Reset);
            prop_assert!(next == state || next == State::Ended);
        }
    }
}
