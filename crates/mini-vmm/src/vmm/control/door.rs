// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The queue of commands, and the eventfd that wakes the control loop for them.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Answer, Command, Error};

/// A command, and where its answer goes.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) command: Command,
    reply: Sender<Result<Answer, Error>>,
}

impl Envelope {
    /// Answers; a client that has gone needs no answer.
    pub(crate) fn answer(self, answer: Result<Answer, Error>) {
        let _ = self.reply.send(answer);
    }
}

/// The outer side of the door. Clones lead to the same run.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    queue: Sender<Envelope>,
    wake: Arc<EventFd>,
}

impl Client {
    /// Has the control loop do `command`, and waits for its answer.
    ///
    /// # Errors
    /// [`Error`] says why it was not done: [`Error::Ended`] also when the run ends before it comes to the command.
    pub(crate) fn command(&self, command: Command) -> Result<Answer, Error> {
        let (reply, answer) = channel();
        // An end of the loop drops the queue, and with it all that asked.
        self.queue
            .send(Envelope { command, reply })
            .map_err(|_| Error::Ended)?;
        // A full counter wakes the loop as well.
        let _ = self.wake.write(1);
        answer.recv().map_err(|_| Error::Ended)?
    }
}

/// The inner side, which the control loop has. Without it all commands are answered by [`Error::Ended`].
#[derive(Debug)]
pub(crate) struct Door {
    queue: Receiver<Envelope>,
    wake: Arc<EventFd>,
}

impl Door {
    /// The next command. After one, ask again before sleeping.
    pub(crate) fn next(&self) -> Option<Envelope> {
        self.queue.try_recv().ok()
    }

    /// What wakes an event loop when there are commands.
    pub(crate) fn bell(&self) -> Bell {
        Bell(Arc::clone(&self.wake))
    }
}

/// Wakes the event loop that it subscribes to.
#[derive(Debug)]
pub(crate) struct Bell(Arc<EventFd>);

impl MutEventSubscriber for Bell {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&*self.0, EventSet::IN)) {
            log::error!("the machine heeds no commands, their event can't be watched: {error}");
        }
    }

    /// Cleared before the queue is looked at, so that what comes later wakes again.
    fn process(&mut self, _: Events, _: &mut EventOps) {
        let _ = self.0.read();
    }
}

/// Both sides of a new door.
///
/// # Errors
/// The process has no descriptor left.
pub(crate) fn door() -> io::Result<(Client, Door)> {
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let (sender, queue) = channel();
    let client = Client {
        queue: sender,
        wake: Arc::clone(&wake),
    };
    Ok((client, Door { queue, wake }))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use event_manager::{EventManager, SubscriberOps};

    use super::*;
    use crate::vmm::control::State;

    #[test]
    fn an_ended_run_answers_at_once() {
        let (client, door) = door().unwrap();
        drop(door);
        let error = client.command(Command::Stop).unwrap_err();
        assert!(matches!(error, Error::Ended), "{error:?}");
    }

    #[test]
    fn a_command_that_the_end_overtakes_is_answered() {
        let (client, door) = door().unwrap();
        let waiting = thread::spawn(move || client.command(Command::Save));
        while door.wake.read().is_err() {
            thread::yield_now();
        }
        drop(door);
        let error = waiting.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Ended), "{error:?}");
    }

    #[test]
    fn every_client_gets_its_own_answer_and_the_bell_rings_for_each() {
        let (client, door) = door().unwrap();
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(door.bell());
        let commands = [Command::Pause, Command::Resume, Command::Save];
        let clients = commands.map(|command| {
            let client = client.clone();
            thread::spawn(move || (command, client.command(command)))
        });
        let mut served = 0;
        while served < commands.len() {
            match door.next() {
                Some(envelope) => {
                    let refusal = Error::refused(envelope.command, State::PoweringOff);
                    envelope.answer(Err(refusal));
                    served += 1;
                }
                None => {
                    manager.run().unwrap();
                }
            }
        }
        for client in clients {
            let (asked, answer) = client.join().unwrap();
            let error = answer.unwrap_err();
            assert!(
                matches!(error, Error::Refused { command, .. } if command == asked),
                "{error:?}"
            );
        }
        // Nobody asks any more: one late ring at most, then silence.
        manager.run_with_timeout(0).unwrap();
        assert_eq!(manager.run_with_timeout(0).unwrap(), 0);
    }
}
