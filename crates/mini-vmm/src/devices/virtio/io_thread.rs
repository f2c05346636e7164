// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread that virtio devices live on.
//!
//! Everybody waits in one order: control loop, vCPU, this thread, kernel. So it waits for nobody. What others ask of it
//! goes through a mailbox, in order.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use virtio_transport::device::Event;
use virtio_transport::message::Command;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Seat;
use super::poller::{Epoll, Token};
use crate::sync::lock;
use crate::sys::eventfd::borrow;

/// How long requests under way may take to end before a pause fails. A host that is this late has other problems.
const DRAIN: Duration = Duration::from_secs(10);
/// How much longer the thread may take to say so.
const MARGIN: Duration = Duration::from_secs(2);
/// How many events are taken at a time.
const EVENTS: usize = 32;

/// The devices, with what their thread waits by. Without a thread, all devices are idle, and whoever needs them does it.
#[derive(Debug, Default)]
pub(super) struct Station {
    seats: Vec<Seat>,
    epoll: Epoll,
    is_over: bool,
}

/// What is asked of the thread.
type Letter = Box<dyn FnOnce(&mut Station) + Send>;

#[derive(Default)]
struct Mailbox {
    letters: Mutex<VecDeque<Letter>>,
    /// There is one from the thread's start on.
    wake: OnceLock<EventFd>,
}

impl Mailbox {
    fn post(&self, letter: Letter) {
        lock(&self.letters).push_back(letter);
        if let Some(wake) = self.wake.get() {
            // It fails only on a full counter, which wakes the thread as well.
            let _ = wake.write(1);
        }
    }
}

enum State {
    /// No driver has started a device yet.
    Waiting(Box<Station>),
    /// There is a thread. It says when it has ended.
    Running(JoinHandle<()>, Receiver<()>),
    /// The machine is gone.
    Ended,
}

/// The thread of a machine's virtio devices, which starts with the first driver.
///
/// A machine whose guest starts no driver has neither a thread nor a descriptor for it.
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
    /// Adds a device, which `seat` makes for its number. All are added before the guest runs.
    pub(super) fn add<T>(&self, seat: impl FnOnce(usize) -> (Seat, T)) -> io::Result<T> {
        let mut state = lock(&self.state);
        let State::Waiting(station) = &mut *state else {
            return Err(io::Error::other("the guest runs already"));
        };
        let (seat, result) = seat(station.seats.len());
        station.seats.push(seat);
        Ok(result)
    }

    /// Carries a command to a device. A start makes the thread, if there is none.
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

    /// Starts the thread if there is none: a restored device is about to run.
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
            // The lock of the state is held: nobody else makes one.
            let _ = self.mailbox.wake.set(EventFd::new(EFD_NONBLOCK)?);
        }
        station.epoll.open()?;
        if let Some(wake) = self.mailbox.wake.get() {
            station
                .epoll
                .watch(borrow(wake), Token::Mail, EventFlags::IN)?;
        }
        let mailbox = Arc::clone(&self.mailbox);
        // The devices go to a thread that there is: one that can't be started would take them with it.
        let (hand, taken) = channel();
        let (end, ended) = channel();
        let thread = Builder::new()
            .name("io".to_owned())
            .spawn(move || run(&taken, &mailbox, &end))?;
        let _ = hand.send(mem::take(station));
        Ok(State::Running(thread, ended))
    }

    /// Has a device do something that the caller waits for, for `wait` at most.
    fn ask<T: Send + 'static>(
        &self,
        seat: usize,
        wait: Duration,
        act: impl FnOnce(&mut Seat, &mut Epoll) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let (sender, answer) = channel();
        let letter = move |station: &mut Station| {
            station.with(seat, |seat, epoll| {
                // Who asked may have given up.
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

    /// Has a device do something that takes no time.
    pub(super) fn call<T: Send + 'static>(
        &self,
        seat: usize,
        act: impl FnOnce(&mut Seat, &mut Epoll) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        self.ask(seat, DRAIN + MARGIN, act)
    }

    /// Stops a device. If that takes too long, it goes on.
    pub(super) fn pause(&self, seat: usize) -> Result<(), NoAnswer> {
        let by = Instant::now() + DRAIN;
        let paused = self.call(seat, move |seat, epoll| seat.pause(epoll, by));
        if paused == Ok(true) {
            return Ok(());
        }
        // It may yet stop, behind the back of whoever asked for it.
        self.resume(seat);
        Err(NoAnswer)
    }

    /// Lets a device go on. What vCPUs ask for later comes later.
    pub(super) fn resume(&self, seat: usize) {
        let resume =
            move |station: &mut Station| station.with(seat, |seat, epoll| seat.resume(epoll));
        match &mut *lock(&self.state) {
            State::Waiting(station) => resume(station),
            State::Running(..) => self.mailbox.post(Box::new(resume)),
            State::Ended => {}
        }
    }

    /// Ends the thread, after requests under way. Does it once.
    ///
    /// A thread that does not end in time is left alone. It keeps guest memory, where its requests may still write.
    pub(in crate::devices) fn end(&self) {
        let state = mem::replace(&mut *lock(&self.state), State::Ended);
        let State::Running(thread, ended) = state else {
            return;
        };
        self.mailbox.post(Box::new(Station::end));
        // Its sender goes with it, also by a panic, which was printed.
        if ended.recv_timeout(DRAIN + MARGIN) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            let _ = thread.join();
        } else {
            log::warn!(
                "the guest's devices have requests under way that don't end; the host is left to end them"
            );
        }
    }
}

impl Station {
    fn with(&mut self, seat: usize, act: impl FnOnce(&mut Seat, &mut Epoll)) {
        if let Some(seat) = self.seats.get_mut(seat) {
            act(seat, &mut self.epoll);
        }
    }

    /// Stops all devices. What does not stop stays for ever, and guest memory with it.
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

/// The thread.
fn run(devices: &Receiver<Station>, mailbox: &Mailbox, _end: &Sender<()>) {
    let Ok(mut station) = devices.recv() else {
        return;
    };
    let mut events = Vec::with_capacity(EVENTS);
    while !station.is_over {
        if let Err(error) = station.epoll.wait(&mut events) {
            log::error!("devices wait for their events no more: {error}");
            return;
        }
        for event in events.drain(..) {
            station.event(Epoll::token(&event), mailbox);
        }
        let letters = mem::take(&mut *lock(&mailbox.letters));
        for letter in letters {
            letter(&mut station);
        }
    }
}
