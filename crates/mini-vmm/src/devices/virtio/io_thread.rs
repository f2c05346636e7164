// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A thread of virtio devices.
//!
//! Waiting goes in one direction only: control loop, vCPU, this thread, kernel. So this thread waits for none of the
//! others. Their requests go through a mailbox, in order.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::iter;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use virtio_transport::device::Event;
use virtio_transport::message::Command;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Seat;
use super::poller::{Epoll, Token};
use crate::outcome::{FailOnPanic, Outcome, OutcomeLatch};
use crate::sync::lock;
use crate::sys::eventfd::borrow;
use crate::sys::threads::{Affinity, block_all_signals};

/// How long requests in flight may take at the machine's end, and flushes at a save. A host this slow has other
/// problems.
pub(super) const DRAIN: Duration = Duration::from_secs(10);
/// The additional time that the thread has to report that.
const MARGIN: Duration = Duration::from_secs(2);
/// The most events taken at once.
const EVENTS: usize = 32;

/// A thread's devices, and what it waits on. Without a thread all devices are idle, and the calling thread uses
/// them.
#[derive(Debug, Default)]
pub(super) struct Station {
    /// By number. No number is used again, so what a device leaves behind reaches no other one.
    seats: BTreeMap<usize, Seat>,
    epoll: Epoll,
    /// Whether new devices begin paused.
    is_paused: bool,
    /// Events that devices want again, each with its device. Other devices have their turn first.
    again: Vec<(usize, Event)>,
    is_over: bool,
}

/// A request to the thread.
type Letter = Box<dyn FnOnce(&mut Station) + Send>;

#[derive(Default)]
struct Mailbox {
    letters: Mutex<VecDeque<Letter>>,
    /// The thread has ended and reads no more letters.
    is_closed: AtomicBool,
    /// Set when the thread starts.
    wake: OnceLock<EventFd>,
}

impl Mailbox {
    fn post(&self, letter: Letter) {
        let mut letters = lock(&self.letters);
        if self.is_closed.load(Ordering::Relaxed) {
            return;
        }
        letters.push_back(letter);
        drop(letters);
        if let Some(wake) = self.wake.get() {
            // Fails only if the counter is full, and then the thread wakes anyway.
            let _ = wake.write(1);
        }
    }
}

/// Closes the mailbox when the thread ends, also by a panic: nobody waits for the answer to a letter then.
struct Close<'a>(&'a Mailbox);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        let mut letters = lock(&self.0.letters);
        self.0.is_closed.store(true, Ordering::Relaxed);
        let unread = mem::take(&mut *letters);
        drop(letters);
        drop(unread);
    }
}

enum State {
    /// No driver has started a device yet.
    Waiting(Box<Station>),
    /// The thread runs. The channel reports its end.
    Running(JoinHandle<()>, Receiver<()>),
    /// The machine is gone.
    Ended,
}

/// A thread of virtio devices, which starts with the first driver of one.
///
/// If no driver starts, a machine has neither the thread nor its descriptors.
pub(super) struct IoThread {
    name: String,
    /// The CPUs on which it runs. It starts on a vCPU's thread, which may be pinned to one.
    affinity: Affinity,
    /// Takes the outcome if it fails.
    outcome: OutcomeLatch,
    state: Mutex<State>,
    mailbox: Arc<Mailbox>,
    /// The number of the next device.
    next: AtomicUsize,
}

impl fmt::Debug for IoThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_running = matches!(*lock(&self.state), State::Running(..));
        f.debug_struct("IoThread")
            .field("name", &self.name)
            .field("is_running", &is_running)
            .finish_non_exhaustive()
    }
}

/// The thread did not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its thread does not answer")]
pub(super) struct NoAnswer;

/// A thread's answer, when it has it.
pub(super) struct Pending<T>(Receiver<T>);

impl<T> Pending<T> {
    /// Waits for the answer until a little after `by`.
    pub fn wait(self, by: Instant) -> Result<T, NoAnswer> {
        let wait = (by + MARGIN).saturating_duration_since(Instant::now());
        self.0.recv_timeout(wait).map_err(|_| NoAnswer)
    }
}

impl IoThread {
    /// A thread that runs where the calling thread runs, and whose failure is an outcome.
    pub fn new(name: String, outcome: OutcomeLatch) -> Self {
        IoThread {
            name,
            affinity: Affinity::current(),
            outcome,
            state: Mutex::new(State::Waiting(Box::default())),
            mailbox: Arc::default(),
            next: AtomicUsize::new(0),
        }
    }

    /// Its name, as the host shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds a device, which `seat` creates for its number. While the others are paused, it begins so, too.
    pub fn add<T>(&self, seat: impl FnOnce(usize) -> (Seat, T)) -> io::Result<T> {
        let mut state = lock(&self.state);
        if matches!(*state, State::Ended) {
            return Err(io::Error::other("the machine has ended"));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (seat, result) = seat(number);
        self.tell(&mut state, move |station| station.add(number, seat));
        Ok(result)
    }

    /// Removes a device after its requests in flight. Returns `false` if they don't end until `by`: then it stays until the
    /// end, without its driver.
    pub fn remove(&self, seat: usize, by: Instant) -> bool {
        let gone = self.ask(move |station| station.remove(seat, by));
        gone.wait(by).unwrap_or(false)
    }

    /// Passes a command to a device. A start also starts the thread, if necessary.
    pub fn post(&self, seat: usize, command: Command) {
        let mut state = lock(&self.state);
        if let (State::Waiting(station), Command::Start(activation)) = (&mut *state, &command) {
            let epoch = activation.epoch;
            match self.start(station) {
                Ok(running) => *state = running,
                Err(error) => {
                    station.with(seat, |seat, _| seat.refuse(epoch, error));
                    return;
                }
            }
        }
        self.tell(&mut state, move |station| {
            station.with(seat, |seat, epoll| seat.perform(epoll, command));
        });
    }

    /// Starts the thread if necessary, since a restored device is about to run.
    pub fn need(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        if let State::Waiting(station) = &mut *state {
            *state = self.start(station)?;
        }
        Ok(())
    }

    /// Starts the thread, with all its devices.
    fn start(&self, station: &mut Station) -> io::Result<State> {
        if self.mailbox.wake.get().is_none() {
            // Can't fail: the state's lock is held.
            let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
            let _ = self.mailbox.wake.set(wake);
        }
        station.epoll.open()?;
        if let Some(wake) = self.mailbox.wake.get() {
            station
                .epoll
                .watch(borrow(wake), Token::Mail, EventFlags::IN)?;
        }
        let mailbox = Arc::clone(&self.mailbox);
        let (affinity, outcome) = (self.affinity, self.outcome.clone());
        // The devices are sent to the running thread. If they were moved into it, a failed start would lose them.
        let (hand, taken) = channel();
        let (end, ended) = channel();
        let thread = Builder::new().name(self.name.clone()).spawn(move || {
            block_all_signals();
            affinity.apply();
            run(&taken, &mailbox, &outcome, &end);
        })?;
        let _ = hand.send(mem::take(station));
        Ok(State::Running(thread, ended))
    }

    /// Lets the thread do something with its devices, or does it if there is no thread yet.
    fn tell(&self, state: &mut State, act: impl FnOnce(&mut Station) + Send + 'static) {
        match state {
            State::Waiting(station) => act(station),
            State::Running(..) => self.mailbox.post(Box::new(act)),
            State::Ended => {}
        }
    }

    /// Like [`tell`](Self::tell), with an answer.
    fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Station) -> T + Send + 'static,
    ) -> Pending<T> {
        let (sender, answer) = channel();
        self.tell(&mut lock(&self.state), move |station| {
            // Fails if the caller has given up.
            let _ = sender.send(act(station));
        });
        Pending(answer)
    }

    /// Runs `act` on a device, and waits for the answer until a little after `by`.
    pub fn call<T: Send + 'static>(
        &self,
        seat: usize,
        by: Instant,
        act: impl FnOnce(&mut Seat, &mut Epoll) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let answer = self.ask(move |station| station.with(seat, act)).wait(by)?;
        answer.ok_or(NoAnswer)
    }

    /// Stops all devices, or answers with the name of the first one that doesn't stop until `by`. Then
    /// [`resume`](Self::resume) them, as well as after no answer: they may still stop later.
    pub fn pause(&self, by: Instant) -> Pending<Result<(), String>> {
        self.ask(move |station| station.pause(by))
    }

    /// Resumes all devices. Later requests of vCPUs are handled afterwards.
    pub fn resume(&self) {
        self.tell(&mut lock(&self.state), Station::resume);
    }

    /// Ends the thread after requests in flight. A second call has no effect.
    ///
    /// A thread that doesn't end until a little after `by` is abandoned. It keeps guest memory mapped, since its
    /// requests may still write there.
    pub fn end(&self, by: Instant) -> Ending {
        let mut state = lock(&self.state);
        self.tell(&mut state, move |station| station.end(by));
        match mem::replace(&mut *state, State::Ended) {
            State::Running(thread, ended) => Ending(Some((thread, ended))),
            _ => Ending(None),
        }
    }
}

/// A thread that was told to end.
#[must_use = "the thread may still run"]
pub(super) struct Ending(Option<(JoinHandle<()>, Receiver<()>)>);

impl Ending {
    /// Waits for its end.
    pub fn wait(self, by: Instant) {
        let Some((thread, ended)) = self.0 else {
            return;
        };
        let wait = (by + MARGIN).saturating_duration_since(Instant::now());
        // The thread's end drops the sender, also after a panic, which was already printed.
        if ended.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
            let _ = thread.join();
        } else {
            log::warn!(
                "requests of the guest's devices don't end in time; they are left to the host"
            );
        }
    }
}

/// Notes an event that a device wants again, once: each event that a busy device gets may make it want another one, and
/// a driver can notify it in every turn.
fn note(again: &mut Vec<(usize, Event)>, wanted: (usize, Event)) {
    if !again.contains(&wanted) {
        again.push(wanted);
    }
}

impl Station {
    fn add(&mut self, number: usize, mut seat: Seat) {
        if self.is_paused {
            // Can't fail: it doesn't run.
            let _ = seat.pause(&mut self.epoll, Instant::now());
        }
        self.seats.insert(number, seat);
    }

    fn remove(&mut self, number: usize, by: Instant) -> bool {
        let Some(seat) = self.seats.get_mut(&number) else {
            return true;
        };
        if !seat.leave(&mut self.epoll, by) {
            return false;
        }
        self.seats.remove(&number);
        self.epoll.forget(number);
        self.again.retain(|(seat, _)| *seat != number);
        true
    }

    fn with<T>(
        &mut self,
        number: usize,
        act: impl FnOnce(&mut Seat, &mut Epoll) -> T,
    ) -> Option<T> {
        let seat = self.seats.get_mut(&number)?;
        let result = act(seat, &mut self.epoll);
        iter::from_fn(|| seat.again()).for_each(|event| note(&mut self.again, (number, event)));
        Some(result)
    }

    /// Stops the devices until one doesn't stop, and returns its name.
    fn pause(&mut self, by: Instant) -> Result<(), String> {
        self.is_paused = true;
        for number in self.numbers() {
            let busy = self.with(number, |seat, epoll| {
                (!seat.pause(epoll, by)).then(|| seat.id().to_owned())
            });
            if let Some(Some(device)) = busy {
                return Err(device);
            }
        }
        Ok(())
    }

    fn resume(&mut self) {
        self.is_paused = false;
        for number in self.numbers() {
            self.with(number, |seat, epoll| seat.resume(epoll));
        }
    }

    fn numbers(&self) -> Vec<usize> {
        self.seats.keys().copied().collect()
    }

    /// Stops all devices. If one doesn't stop, it is never freed, and neither is guest memory.
    fn end(&mut self, by: Instant) {
        self.is_over = true;
        for mut seat in mem::take(&mut self.seats).into_values() {
            if !seat.pause(&mut self.epoll, by) {
                mem::forget(seat);
            }
        }
    }

    fn event(&mut self, token: Token, mailbox: &Mailbox) {
        match token {
            Token::Mail => {
                if let Some(wake) = mailbox.wake.get() {
                    let _ = wake.read();
                }
            }
            Token::Kick { seat, queue } => {
                self.with(seat, |seat, epoll| seat.process(epoll, Event::Queue(queue)));
            }
            Token::Source {
                seat,
                token: source,
            } => {
                if self.epoll.watches(token) {
                    let event = Event::Source(source);
                    self.with(seat, |seat, epoll| seat.process(epoll, event));
                }
            }
        }
    }
}

/// The body of the thread. Its end drops `_end`.
fn run(devices: &Receiver<Station>, mailbox: &Mailbox, outcome: &OutcomeLatch, _end: &Sender<()>) {
    let _fails = FailOnPanic(outcome);
    let _close = Close(mailbox);
    let Ok(mut station) = devices.recv() else {
        return;
    };
    let mut events = Vec::with_capacity(EVENTS);
    while !station.is_over {
        let again = mem::take(&mut station.again);
        if let Err(error) = station.epoll.wait(&mut events, again.is_empty()) {
            log::error!("virtio devices handle no more events, because waiting failed: {error}");
            outcome.set(Outcome::DeviceFailure);
            return;
        }
        let mut has_mail = false;
        for event in events.drain(..) {
            let token = Epoll::token(&event);
            has_mail |= token == Token::Mail;
            station.event(token, mailbox);
        }
        if has_mail {
            let letters = mem::take(&mut *lock(&mailbox.letters));
            for letter in letters {
                letter(&mut station);
            }
        }
        for (seat, event) in again {
            station.with(seat, |seat, epoll| seat.process(epoll, event));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_wants_again_it_gets_once() {
        let mut again = Vec::new();
        let wanted = [
            (0, Event::Queue(1)),
            (1, Event::Queue(1)),
            (0, Event::Source(1)),
        ];
        for _ in 0..100 {
            wanted.into_iter().for_each(|event| note(&mut again, event));
        }
        assert_eq!(again, wanted);
    }

    #[test]
    fn nobody_waits_for_a_thread_that_has_ended() {
        let mailbox = Mailbox::default();
        let letter = || {
            let (sender, answer) = channel::<()>();
            let letter = move |_: &mut Station| drop(sender);
            mailbox.post(Box::new(letter));
            answer
        };
        let before = letter();
        drop(Close(&mailbox));
        let after = letter();
        assert!(before.recv().is_err() && after.recv().is_err());
        assert!(lock(&mailbox.letters).is_empty());
    }
}
