// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command queue, and the eventfd that wakes the control loop for it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Answer, Command, Error, State};
use crate::sync::{Reply, Wake, lock, promise};

/// The most commands that wait without a thread of their own. Another [`Command::Stop`] is possible, to a limit of its
/// own.
const MAX_WAITING: usize = 128;

/// The answer to a command.
pub(crate) type Answered = Result<Answer, Error>;

/// A command, and who gets its answer.
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) command: Command,
    reply: Reply<Answered>,
}

impl Envelope {
    /// Sends the answer. If the client is gone, it is dropped.
    pub(crate) fn answer(self, answer: Answered) {
        self.reply.send(answer);
    }
}

/// The client's end of the command queue. Clones belong to the same run.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    queue: Sender<Envelope>,
    wake: Arc<EventFd>,
    board: Arc<Board>,
}

/// What both ends see.
#[derive(Debug)]
struct Board {
    state: Mutex<State>,
    /// Commands in the queue.
    waiting: AtomicUsize,
}

impl Client {
    /// Sends `command` to the control loop, and waits for its answer.
    ///
    /// # Errors
    /// [`Error`] says why it failed: [`Error::Ended`] also if the run ends before it handles the command.
    pub(crate) fn command(&self, command: Command) -> Answered {
        let answer = self.put(command, None)?;
        answer.recv().map_err(|_| Error::Ended)?
    }

    /// Sends `command` to the control loop. `wake` is signalled once the answer is there. If the run ends before that,
    /// the receiver is disconnected.
    ///
    /// # Errors
    /// [`Error::Ended`], or [`Error::Busy`] if many commands wait already.
    pub(crate) fn send(
        &self,
        command: Command,
        wake: &Arc<Wake>,
    ) -> Result<Receiver<Answered>, Error> {
        if self.state() == State::Ended {
            return Err(Error::Ended);
        }
        let max = match command {
            Command::Stop => 2 * MAX_WAITING,
            _ => MAX_WAITING,
        };
        if self.board.waiting.load(Ordering::Relaxed) >= max {
            return Err(Error::Busy);
        }
        self.put(command, Some(Arc::clone(wake)))
    }

    fn put(&self, command: Command, wake: Option<Arc<Wake>>) -> Result<Receiver<Answered>, Error> {
        let (reply, answer) = promise(wake);
        self.board.waiting.fetch_add(1, Ordering::Relaxed);
        // When the loop ends, it drops the queue with all pending commands.
        self.queue
            .send(Envelope { command, reply })
            .map_err(|_| Error::Ended)?;
        // A full counter also wakes the loop.
        let _ = self.wake.write(1);
        Ok(answer)
    }

    /// The state of the run, without waiting. While a machine is loaded, it is the state that it will have.
    pub(crate) fn state(&self) -> State {
        *lock(&self.board.state)
    }
}

/// The control loop's end of the command queue. Once it is dropped, all commands get [`Error::Ended`].
#[derive(Debug)]
pub(crate) struct Door {
    queue: Receiver<Envelope>,
    /// Commands that were looked at. They come before those in the queue.
    seen: RefCell<VecDeque<Envelope>>,
    wake: Arc<EventFd>,
    board: Arc<Board>,
}

impl Door {
    /// The next command. A [`Command::Stop`] comes before all others, of which each may take minutes. After `Some`, call
    /// it again before sleeping.
    pub(crate) fn next(&self) -> Option<Envelope> {
        let others = || {
            let next = self.seen.borrow_mut().pop_front();
            next.inspect(|_| self.has_left())
        };
        self.next_stop().or_else(others)
    }

    /// Makes a command the next one again, but for a stop.
    pub(crate) fn put_back(&self, envelope: Envelope) {
        self.seen.borrow_mut().push_front(envelope);
        self.board.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// How many commands wait.
    pub(crate) fn waiting(&self) -> usize {
        self.board.waiting.load(Ordering::Relaxed)
    }

    fn has_left(&self) {
        self.board.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// The place where clients see the state of the run.
    pub(crate) fn shown(&self) -> Shown {
        Shown(Arc::clone(&self.board))
    }

    /// Answers the first [`Command::Stop`], if there is one, and returns whether there was. Others stay queued.
    pub(crate) fn take_stop(&self) -> bool {
        self.next_stop()
            .map(|stop| stop.answer(Ok(Answer::Done)))
            .is_some()
    }

    /// Whether a [`Command::Stop`] waits.
    pub(crate) fn has_stop(&self) -> bool {
        self.find_stop().is_some()
    }

    /// The first [`Command::Stop`]. Others stay queued.
    fn next_stop(&self) -> Option<Envelope> {
        let stop = self.find_stop();
        let stop = stop.and_then(|at| self.seen.borrow_mut().remove(at));
        stop.inspect(|_| self.has_left())
    }

    /// The place of the first [`Command::Stop`] among those that were looked at.
    fn find_stop(&self) -> Option<usize> {
        let mut seen = self.seen.borrow_mut();
        seen.extend(self.queue.try_iter());
        seen.iter()
            .position(|envelope| envelope.command == Command::Stop)
    }

    /// What wakes the event loop of [`bell`](Self::bell) when it is written.
    pub(crate) fn waker(&self) -> Arc<EventFd> {
        Arc::clone(&self.wake)
    }

    /// The subscriber that wakes an event loop for commands.
    pub(crate) fn bell(&self) -> Bell {
        Bell(Arc::clone(&self.wake))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.shown().set(State::Ended);
    }
}

/// The state of a run, which clients see.
#[derive(Debug)]
pub(crate) struct Shown(Arc<Board>);

impl Shown {
    pub(crate) fn get(&self) -> State {
        *lock(&self.0.state)
    }

    pub(crate) fn set(&self, state: State) {
        *lock(&self.0.state) = state;
    }
}

/// Wakes the event loop that it is subscribed to.
#[derive(Debug)]
pub(crate) struct Bell(Arc<EventFd>);

impl MutEventSubscriber for Bell {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&*self.0, EventSet::IN)) {
            log::error!(
                "the machine handles no commands, because their event can't be watched: {error}"
            );
        }
    }

    /// Reads the eventfd before the queue is checked, so that later commands wake the loop again.
    fn process(&mut self, _: Events, _: &mut EventOps) {
        let _ = self.0.read();
    }
}

/// Both ends of a new command queue.
///
/// # Errors
/// The process has no file descriptor left.
pub(crate) fn door() -> io::Result<(Client, Door)> {
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let (sender, queue) = channel();
    let board = Arc::new(Board {
        state: Mutex::new(State::Paused),
        waiting: AtomicUsize::new(0),
    });
    let client = Client {
        queue: sender,
        wake: Arc::clone(&wake),
        board: Arc::clone(&board),
    };
    let door = Door {
        queue,
        seen: RefCell::default(),
        wake,
        board,
    };
    Ok((client, door))
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
    fn a_stop_is_taken_from_among_others_which_keep_their_order() {
        let (client, door) = door().unwrap();
        assert!(!door.has_stop() && !door.take_stop());
        let commands = [Command::Pause, Command::Stop, Command::Resume];
        let clients = commands.map(|command| {
            let other = client.clone();
            let waiting = thread::spawn(move || other.command(command));
            // The next command comes after this one.
            while door.wake.read().is_err() {
                thread::yield_now();
            }
            waiting
        });
        assert!(door.has_stop() && door.take_stop());
        assert!(!door.has_stop() && !door.take_stop());
        for left in [Command::Pause, Command::Resume] {
            assert_eq!(door.next().unwrap().command, left);
        }
        assert!(door.next().is_none());
        let answers = clients.map(|waiting| waiting.join().unwrap().is_ok());
        assert_eq!(answers, [false, true, false]);
    }

    #[test]
    fn a_stop_is_next_whatever_waits_before_it() {
        let (client, door) = door().unwrap();
        let wake = Arc::new(Wake::new().unwrap());
        let send = |command| client.send(command, &wake).unwrap();
        let _answers = [Command::Pause, Command::Save].map(send);
        assert_eq!(door.next().unwrap().command, Command::Pause);
        let _answers = [Command::Resume, Command::Stop].map(send);
        assert_eq!(door.waiting(), 3);
        for next in [Command::Stop, Command::Save, Command::Resume] {
            assert_eq!(door.next().unwrap().command, next);
        }
        assert!(door.next().is_none());
        assert_eq!(door.waiting(), 0);
    }

    #[test]
    fn commands_of_one_thread_are_answered_later_and_bounded() {
        let (client, door) = door().unwrap();
        let wake = Arc::new(Wake::new().unwrap());
        for _ in 0..MAX_WAITING {
            drop(client.send(Command::Pause, &wake).unwrap());
        }
        let error = client.send(Command::Pause, &wake).unwrap_err();
        assert!(matches!(error, Error::Busy), "{error:?}");
        let stop = client.send(Command::Stop, &wake).unwrap();
        assert!(!wake.clear() && door.take_stop() && wake.clear());
        assert!(stop.try_recv().unwrap().is_ok());
        assert_eq!(door.next().unwrap().command, Command::Pause);
        client.send(Command::Pause, &wake).unwrap();
    }

    #[test]
    fn the_state_is_seen_without_a_command() {
        let (client, door) = door().unwrap();
        door.shown().set(State::Running);
        assert_eq!(client.state(), State::Running);
        drop(door);
        assert_eq!(client.state(), State::Ended);
    }

    #[test]
    fn every_client_gets_its_own_answer_and_the_bell_rings_for_each() {
        let (client, door) = door().unwrap();
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(door.bell());
        let commands = [Command::Pause, Command::Resume, Command::Save];
        let count = commands.len();
        let clients = commands.map(|command| {
            let client = client.clone();
            thread::spawn(move || (command.clone(), client.command(command)))
        });
        let mut served = 0;
        while served < count {
            match door.next() {
                Some(envelope) => {
                    let refusal = Error::refused(envelope.command.clone(), State::PoweringOff);
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
                matches!(&error, Error::Refused { command, .. } if **command == asked),
                "{error:?}"
            );
        }
        // No command is pending: at most one late wake-up, then none.
        manager.run_with_timeout(0).unwrap();
        assert_eq!(manager.run_with_timeout(0).unwrap(), 0);
    }
}
