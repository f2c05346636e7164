// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread of the virtio devices.
//!
//! Waiting goes in one direction only: control loop, vCPU, this thread, kernel. So this thread waits for none of the
//! others. Their requests go through a mailbox, in order.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::iter;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use virtio_transport::device::Event;
use virtio_transport::message::Command;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Seat;
use super::poller::{Epoll, Token};
use crate::sync::lock;
use crate::sys::eventfd::borrow;

/// How long requests in flight may take at the machine's end, and flushes at a save. A host this slow has other
/// problems.
pub(super) const DRAIN: Duration = Duration::from_secs(10);
/// The additional time that the thread has to report that.
const MARGIN: Duration = Duration::from_secs(2);
/// The most events taken at once.
const EVENTS: usize = 32;

/// The devices, and what their thread waits on. Without a thread all devices are idle, and the calling thread uses
/// them.
#[derive(Debug, Default)]
pub(super) struct Station {
    seats: Vec<Seat>,
    epoll: Epoll,
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

/// The thread of a machine's virtio devices, which starts with the first driver.
///
/// If no driver starts, a machine has neither the thread nor its descriptors.
pub struct IoThread {
    state: Mutex<State>,
    mailbox: Arc<Mailbox>,
}

impl Default for IoThread {
    fn default() -> Self {
        IoThread {
            state: Mutex::new(State::Waiting(Box::default())),
            mailbox: Arc::default(),
        }
    }
}

impl fmt::Debug for IoThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_running = matches!(*lock(&self.state), State::Running(..));
        f.debug_struct("IoThread")
            .field("is_running", &is_running)
            .finish_non_exhaustive()
    }
}

/// The thread did not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its thread does not answer")]
pub(super) struct NoAnswer;

impl IoThread {
    /// Adds a device, which `seat` creates for its number. All must be added before the guest runs.
    pub(super) fn add<T>(&self, seat: impl FnOnce(usize) -> (Seat, T)) -> io::Result<T> {
        let mut state = lock(&self.state);
        let State::Waiting(station) = &mut *state else {
            return Err(io::Error::other("the guest runs already"));
        };
        let (seat, result) = seat(station.seats.len());
        station.seats.push(seat);
        Ok(result)
    }

    /// Passes a command to a device. A start also starts the thread, if necessary.
    pub(super) fn post(&self, seat: usize, command: Command) {
        let mut state = lock(&self.state);
        if let (State::Waiting(station), Command::Start(activation)) = (&mut *state, &command) {
            let epoch = activation.epoch;
            match self.start(station) {
                Ok(running) => *state = running,
                Err(error) => return station.with(seat, |seat, _| seat.refuse(epoch, error)),
            }
        }
        match &mut *state {
            State::Waiting(station) => {
                station.with(seat, |seat, epoll| seat.perform(epoll, command))
            }
            State::Running(..) => self.mailbox.post(Box::new(move |station| {
                station.with(seat, |seat, epoll| seat.perform(epoll, command));
            })),
            State::Ended => {}
        }
    }

    /// Starts the thread if necessary, since a restored device is about to run.
    pub(super) fn need(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        if let State::Waiting(station) = &mut *state {
            *state = self.start(station)?;
        }
        Ok(())
    }

    /// Starts the thread, with all devices.
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
        // The devices are sent to the running thread. If they were moved into it, a failed start would lose them.
        let (hand, taken) = channel();
        let (end, ended) = channel();
        let thread = Builder::new()
            .name("io".to_owned())
            .spawn(move || run(&taken, &mailbox, &end))?;
        let _ = hand.send(mem::take(station));
        Ok(State::Running(thread, ended))
    }

    /// Runs `act` on a device, and waits for at most `wait`.
    fn ask<T: Send + 'static>(
        &self,
        seat: usize,
        wait: Duration,
        act: impl FnOnce(&mut Seat, &mut Epoll) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let (sender, answer) = channel();
        let letter = move |station: &mut Station| {
            station.with(seat, |seat, epoll| {
                // Fails if the caller has given up.
                let _ = sender.send(act(seat, epoll));
            });
        };
        match &mut *lock(&self.state) {
            State::Waiting(station) => letter(station),
            State::Running(..) => self.mailbox.post(Box::new(letter)),
            State::Ended => return Err(NoAnswer),
        }
        answer.recv_timeout(wait).map_err(|_| NoAnswer)
    }

    /// Runs `act` on a device. It must not take long.
    pub(super) fn call<T: Send + 'static>(
        &self,
        seat: usize,
        act: impl FnOnce(&mut Seat, &mut Epoll) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        self.ask(seat, DRAIN + MARGIN, act)
    }

    /// Stops a device. If that takes too long, it is resumed.
    pub(super) fn pause(&self, seat: usize, by: Instant) -> Result<(), NoAnswer> {
        let wait = by.saturating_duration_since(Instant::now()) + MARGIN;
        let paused = self.ask(seat, wait, move |seat, epoll| seat.pause(epoll, by));
        if paused == Ok(true) {
            return Ok(());
        }
        // It may still stop later, so undo that.
        self.resume(seat);
        Err(NoAnswer)
    }

    /// Resumes a device. Later requests of vCPUs are handled afterwards.
    pub(super) fn resume(&self, seat: usize) {
        let resume =
            move |station: &mut Station| station.with(seat, |seat, epoll| seat.resume(epoll));
        match &mut *lock(&self.state) {
            State::Waiting(station) => resume(station),
            State::Running(..) => self.mailbox.post(Box::new(resume)),
            State::Ended => {}
        }
    }

    /// Ends the thread after requests in flight. A second call has no effect.
    ///
    /// A thread that doesn't end in time is abandoned. It keeps guest memory mapped, since its requests may still write
    /// there.
    pub(in crate::devices) fn end(&self) {
        let state = mem::replace(&mut *lock(&self.state), State::Ended);
        let State::Running(thread, ended) = state else {
            return;
        };
        self.mailbox.post(Box::new(Station::end));
        // The thread's end drops the sender, also after a panic, which was already printed.
        if ended.recv_timeout(DRAIN + MARGIN) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = thread.join();
        } else {
            log::warn!(
                "requests of the guest's devices don't end in time; they are left to the host"
            );
        }
    }
}

impl Station {
    fn with(&mut self, seat: usize, act: impl FnOnce(&mut Seat, &mut Epoll)) {
        let number = seat;
        if let Some(seat) = self.seats.get_mut(number) {
            act(seat, &mut self.epoll);
            self.again
                .extend(iter::from_fn(|| seat.again()).map(|event| (number, event)));
        }
    }

    /// Stops all devices. If one doesn't stop, it is never freed, and neither is guest memory.
    fn end(&mut self) {
        let by = Instant::now() + DRAIN;
        self.is_over = true;
        for mut seat in mem::take(&mut self.seats) {
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
            Token::Kick { seat, queue } => self.with(seat, |seat, epoll| seat.kick(epoll, queue)),
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

/// The body of the thread.
fn run(devices: &Receiver<Station>, mailbox: &Mailbox, _end: &Sender<()>) {
    let _close = Close(mailbox);
    let Ok(mut station) = devices.recv() else {
        return;
    };
    let mut events = Vec::with_capacity(EVENTS);
    while !station.is_over {
        let again = mem::take(&mut station.again);
        if let Err(error) = station.epoll.wait(&mut events, again.is_empty()) {
            log::error!("virtio devices handle no more events, because waiting failed: {error}");
            return;
        }
        for event in events.drain(..) {
            station.event(Epoll::token(&event), mailbox);
        }
        let letters = mem::take(&mut *lock(&mailbox.letters));
        for letter in letters {
            letter(&mut station);
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
