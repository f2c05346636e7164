// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A machine without KVM, for tests and fuzzing: it has the states of a run, and no guest.

use event_manager::{EventManager, SubscriberOps};
use virtio_models::balloon;

use super::control::{
    Answer, BalloonReport, Command, Description, Door, Error, Pages, Response, State, step,
};
use super::remote::{Order, Orders, Start};
use crate::config::VmSpec;
use crate::hypercall::calls::Counters;

impl Orders {
    /// As [`run`](Self::run), but every description starts, and its machine does nothing.
    pub(crate) fn pretend(self) {
        if let Ok(Ok(Order::Start(start))) = self.next() {
            run(*start);
        }
    }
}

/// Starts a machine, and does what its commands say.
fn run(start: Start) {
    let state = match &start.saved {
        Some(saved) if !saved.runs => State::Paused,
        _ => State::Running,
    };
    start.door.shown().set(state);
    start.reply.send(Ok(()));
    serve(&start.spec, &start.door, state);
}

/// A machine that loads until a test says otherwise.
#[derive(Debug)]
pub(crate) struct Load(Box<Start>);

impl Load {
    /// The machine that was ordered.
    pub(crate) fn of(orders: &Orders) -> Self {
        match orders.next() {
            Ok(Ok(Order::Start(start))) => Load(start),
            other => panic!("no start: {other:?}"),
        }
    }

    /// Whether a client has stopped it.
    #[cfg(test)]
    pub(crate) fn is_stopped(&self) -> bool {
        self.0.door.take_stop()
    }

    /// Ends with a machine.
    pub(crate) fn succeed(self) {
        run(*self.0);
    }

    /// Ends with an error. `between` is called when its commands are lost, and its start is not answered yet.
    pub(crate) fn fail(self, between: impl FnOnce()) {
        let Start { door, reply, .. } = *self.0;
        drop(door);
        between();
        reply.send(Err(std::sync::Arc::new(super::Error::Panicked)));
    }
}

/// Whether the process was told to end.
#[cfg(test)]
pub(crate) fn is_over(orders: &Orders) -> bool {
    matches!(orders.next(), Ok(Ok(Order::Stop)))
}

/// Does what commands say until one stops the machine.
fn serve(spec: &VmSpec, door: &Door, mut state: State) {
    let mut manager = EventManager::new().expect("file descriptors for events");
    manager.add_subscriber(door.bell());
    while state != State::Ended {
        while let Some(envelope) = door.next() {
            let command = &envelope.command;
            let (next, response) = step(state, command);
            door.shown().set(next);
            let answer = match response {
                Response::Refused(state) => Err(Error::refused(command.clone(), state)),
                Response::Do if *command == Command::Describe => Ok(describe(state, spec)),
                Response::Do if matches!(command, Command::ListMemory(_)) => {
                    Ok(Answer::Listed(Pages::default()))
                }
                Response::Do => Ok(match command {
                    Command::AskBalloon(asked) => {
                        let report = BalloonReport::new(&balloon::Control::default(), *asked);
                        Answer::Balloon(report)
                    }
                    _ => Answer::Done,
                }),
            };
            envelope.answer(answer);
            state = next;
        }
        if state != State::Ended {
            let _ = manager.run();
        }
    }
}

fn describe(state: State, spec: &VmSpec) -> Answer {
    let hypercalls = Counters {
        calls: Vec::new(),
        other: 0,
        unknown: 0,
        unprivileged: 0,
    };
    Answer::Described(Box::new(Description {
        state,
        spec: spec.clone(),
        resets: 0,
        exits: vec![0; usize::from(spec.cpus)],
        hypercalls,
    }))
}
