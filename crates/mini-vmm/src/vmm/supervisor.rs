// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Handles signals and deadlines while a machine runs.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use log::warn;

use crate::devices::PowerButton;
use crate::outcome::{Outcome, OutcomeLatch};
use crate::sys::terminal::is_ignored;
use crate::vmm::control::{Incident, Shown, State, occur};

/// The termination signals, as readable streams. The handlers stay for the rest of the process's life.
#[derive(Debug)]
pub struct TerminationSignals {
    streams: Vec<(i32, UnixStream)>,
}

impl TerminationSignals {
    /// Replaces the default action of SIGTERM, SIGINT and SIGHUP. If SIGHUP is ignored, it stays so, as nohup requires.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub fn install() -> io::Result<Self> {
        let mut streams = vec![stream_of(libc::SIGTERM)?, stream_of(libc::SIGINT)?];
        if !is_ignored(libc::SIGHUP) {
            streams.push(stream_of(libc::SIGHUP)?);
        }
        Ok(TerminationSignals { streams })
    }

    /// No signals: the caller handles them.
    pub fn none() -> Self {
        let streams = Vec::new();
        TerminationSignals { streams }
    }

    /// Another handle on the same streams, for the next machine of this process.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let streams = self.streams.iter();
        let clones = streams.map(|(signal, stream)| Ok((*signal, stream.try_clone()?)));
        Ok(TerminationSignals {
            streams: clones.collect::<io::Result<_>>()?,
        })
    }

    /// The signal of `fd`, and how often it arrived since the last call.
    fn take(&self, fd: RawFd) -> Option<(i32, usize)> {
        let (signal, stream) = self.streams.iter().find(|(_, s)| s.as_raw_fd() == fd)?;
        read(stream).map(|count| (*signal, count))
    }

    /// The streams, to wait for.
    pub(crate) fn streams(&self) -> impl Iterator<Item = &UnixStream> {
        self.streams.iter().map(|(_, stream)| stream)
    }

    /// A signal that arrived since the last call.
    pub(crate) fn pending(&self) -> Option<i32> {
        let mut streams = self.streams.iter();
        streams.find_map(|(signal, stream)| read(stream).map(|_| *signal))
    }
}

/// Reads the pending bytes and returns their number.
fn read(mut stream: &UnixStream) -> Option<usize> {
    let count = stream.read(&mut [0; 64]).ok()?;
    (count > 0).then_some(count)
}

/// A non-blocking stream that receives a byte for each `signal`.
fn stream_of(signal: i32) -> io::Result<(i32, UnixStream)> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(signal, writer)?;
    Ok((signal, reader))
}

/// How often the power button is pressed again while the guest has not noticed it. It may not listen yet.
const REMIND_EVERY: Duration = Duration::from_millis(500);

/// Turns signals and deadlines into power button presses and outcomes.
///
/// The first signal presses the guest's power button. A second signal, a reset, or the end of the grace period without
/// a power-off ends the run with [`Outcome::Signal`]. Without a grace period the first signal does.
pub struct Supervisor {
    state: Shown,
    latch: OutcomeLatch,
    signals: TerminationSignals,
    button: Option<Arc<dyn PowerButton>>,
    grace: Duration,
    stop_at: Option<(Instant, i32)>,
    time_out_at: Option<Instant>,
    /// The outcome if a signal or deadline ends the run. It replaces a reset that came first.
    told: Option<Outcome>,
}

impl Supervisor {
    /// A supervisor of one machine, in the run with that state. At `time_out_at` it ends the run with
    /// [`Outcome::Timeout`].
    pub(crate) fn new(
        state: Shown,
        latch: OutcomeLatch,
        signals: TerminationSignals,
        button: Option<Arc<dyn PowerButton>>,
        grace: Duration,
        time_out_at: Option<Instant>,
    ) -> Self {
        Supervisor {
            state,
            latch,
            signals,
            button,
            grace,
            stop_at: None,
            time_out_at,
            told: None,
        }
    }

    /// The state of the run.
    pub fn state(&self) -> State {
        self.state.get()
    }

    /// Sets the state of the run after a command.
    pub fn set_state(&mut self, state: State) {
        self.state.set(state);
    }

    /// Ends the run with `outcome`, unless it already has one.
    pub fn end(&mut self, outcome: Outcome) {
        self.state.set(State::Ended);
        self.told.get_or_insert(outcome);
        self.latch.set(outcome);
    }

    /// Reports the outcome of a deadline that has passed at `now`. Returns how long the event loop may sleep until the
    /// next one, in milliseconds, or -1 for no deadline.
    pub fn check_deadlines(&mut self, now: Instant) -> i32 {
        let deadlines = [
            self.stop_at
                .map(|(at, signal)| (at, Outcome::Signal(signal))),
            self.time_out_at.map(|at| (at, Outcome::Timeout)),
        ];
        let Some((at, outcome)) = deadlines.into_iter().flatten().min_by_key(|(at, _)| *at) else {
            return -1;
        };
        if at <= now {
            self.latch.set(outcome);
            return 0;
        }
        let mut sleep = at - now;
        if self.stop_at.is_some() {
            self.use_button(|button| button.remind());
            sleep = sleep.min(REMIND_EVERY);
        }
        // Rounded up, since waking too early would spin.
        i32::try_from(sleep.as_millis() + 1).unwrap_or(i32::MAX)
    }

    /// The outcome that is due before the guest runs (again): a termination signal, or the time limit. Loading takes a
    /// while, and a guest that resets at once leaves the event loop no time to handle either.
    pub fn overdue(&mut self, now: Instant) -> Option<Outcome> {
        if self.told.is_some() {
            return self.told;
        }
        let told = self.stop_at.map(|(_, signal)| signal);
        if let Some(signal) = told.or_else(|| self.signals.pending()) {
            return Some(Outcome::Signal(signal));
        }
        (self.time_out_at? <= now).then_some(Outcome::Timeout)
    }

    /// Lets the time limit be over.
    #[cfg(test)]
    pub(crate) fn time_out_now(&mut self) {
        self.time_out_at = Some(Instant::now());
    }

    /// Acts on the button. If the host can't raise its interrupt, the grace period still runs.
    fn use_button(&self, act: fn(&dyn PowerButton) -> io::Result<()>) {
        if let Some(button) = &self.button
            && let Err(error) = act(&**button)
        {
            warn!("can't reach the guest's power button: {error}");
        }
    }

    /// Handles `count` deliveries of `signal`. Without a grace period one counts as two.
    fn on_signal(&mut self, signal: i32, count: usize, now: Instant) {
        let is_last = count > 1 || self.grace.is_zero();
        let mut state = occur(self.state(), Incident::Signal);
        if is_last {
            state = occur(state, Incident::Signal);
        }
        self.set_state(state);
        if state == State::Ended {
            self.end(Outcome::Signal(signal));
            return;
        }
        self.use_button(|button| button.press());
        self.stop_at = Some((now + self.grace, signal));
        warn!(
            "{}: pressed the guest's power button; it has {} s to power off (send it again to stop now)",
            name_of(signal),
            self.grace.as_secs()
        );
    }
}

/// The name of a signal that is handled here.
fn name_of(signal: i32) -> &'static str {
    match signal {
        libc::SIGTERM => "SIGTERM",
        libc::SIGINT => "SIGINT",
        libc::SIGHUP => "SIGHUP",
        _ => "signal",
    }
}

impl std::fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisor")
            .field("state", &self.state())
            .field("stop_at", &self.stop_at)
            .field("time_out_at", &self.time_out_at)
            .finish_non_exhaustive()
    }
}

/// The supervisor as the event loop uses it. It is shared with the control loop, which asks for deadlines.
impl MutEventSubscriber for Supervisor {
    fn init(&mut self, ops: &mut EventOps) {
        let signals = self.signals.streams.iter().map(|(_, s)| s.as_raw_fd());
        for fd in signals.chain([self.latch.event().as_raw_fd()]) {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                // Without them the process can't be stopped, so end the run instead.
                warn!("can't wait for signals: {error}");
                self.latch.set(Outcome::Signal(libc::SIGTERM));
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        // The latch's event only wakes the loop, which then checks the latch.
        if let Some((signal, count)) = self.signals.take(events.fd()) {
            self.on_signal(signal, count, Instant::now());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;
    use crate::vmm::control::door;

    /// Counts presses and reminders.
    #[derive(Clone, Default)]
    struct CountingButton {
        presses: Arc<AtomicU32>,
        reminders: Arc<AtomicU32>,
    }

    impl PowerButton for CountingButton {
        fn press(&self) -> io::Result<()> {
            self.presses.fetch_add(1, SeqCst);
            Ok(())
        }

        fn remind(&self) -> io::Result<()> {
            self.reminders.fetch_add(1, SeqCst);
            Ok(())
        }
    }

    /// All signals, and the streams to simulate them.
    pub(crate) fn signals() -> (TerminationSignals, Vec<(i32, UnixStream)>) {
        let signals = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];
        let pairs = signals.map(|signal| {
            let (reader, writer) = UnixStream::pair().unwrap();
            reader.set_nonblocking(true).unwrap();
            ((signal, reader), (signal, writer))
        });
        let (streams, writers) = pairs.into_iter().unzip();
        (TerminationSignals { streams }, writers)
    }

    fn supervisor(time_out_at: Option<Instant>) -> (Supervisor, OutcomeLatch, CountingButton) {
        let latch = OutcomeLatch::new().unwrap();
        let button = CountingButton::default();
        let (signals, _) = signals();
        let pressed: Option<Arc<dyn PowerButton>> = Some(Arc::new(button.clone()));
        let grace = Duration::from_secs(5);
        let (_, door) = door().unwrap();
        let state = door.shown();
        drop(door);
        state.set(State::Running);
        (
            Supervisor::new(state, latch.clone(), signals, pressed, grace, time_out_at),
            latch,
            button,
        )
    }

    #[test]
    fn first_signal_presses_the_button_second_stops() {
        let (mut supervisor, latch, button) = supervisor(None);
        let now = Instant::now();
        assert_eq!(supervisor.check_deadlines(now), -1);
        supervisor.on_signal(libc::SIGTERM, 1, now);
        assert_eq!((button.presses.load(SeqCst), latch.get()), (1, None));
        supervisor.on_signal(libc::SIGINT, 1, now);
        assert_eq!(
            (button.presses.load(SeqCst), latch.get()),
            (1, Some(Outcome::Signal(libc::SIGINT)))
        );
    }

    #[test]
    fn without_grace_the_first_signal_stops() {
        let (supervisor, latch, button) = supervisor(None);
        let mut supervisor = Supervisor {
            grace: Duration::ZERO,
            ..supervisor
        };
        supervisor.on_signal(libc::SIGINT, 1, Instant::now());
        assert_eq!(latch.get(), Some(Outcome::Signal(libc::SIGINT)));
        assert_eq!(button.presses.load(SeqCst), 0);
    }

    #[test]
    fn a_guest_that_ignores_the_button_is_stopped_after_the_grace_period() {
        let (mut supervisor, latch, button) = supervisor(None);
        let now = Instant::now();
        supervisor.on_signal(libc::SIGTERM, 1, now);
        // Not before the next reminder, twice a second.
        assert_eq!(supervisor.check_deadlines(now), 501);
        let almost = now + Duration::from_millis(4990);
        assert_eq!(supervisor.check_deadlines(almost), 11);
        assert_eq!(button.reminders.load(SeqCst), 2);
        assert_eq!(latch.get(), None);
        assert_eq!(supervisor.check_deadlines(now + Duration::from_secs(5)), 0);
        assert_eq!(latch.get(), Some(Outcome::Signal(libc::SIGTERM)));
    }

    #[test]
    fn the_nearest_deadline_counts() {
        let now = Instant::now();
        let (mut supervisor, latch, _) = supervisor(Some(now + Duration::from_secs(1)));
        assert_eq!(supervisor.check_deadlines(now), 1001);
        supervisor.on_signal(libc::SIGTERM, 1, now);
        supervisor.check_deadlines(now + Duration::from_secs(2));
        assert_eq!(latch.get(), Some(Outcome::Timeout));
    }

    #[test]
    fn reset_is_the_end_after_a_signal_or_out_of_time() {
        let now = Instant::now();
        let (mut told, _, _) = supervisor(None);
        assert_eq!(told.overdue(now), None);
        told.on_signal(libc::SIGINT, 1, now);
        let outcome = told.overdue(now);
        assert_eq!(outcome, Some(Outcome::Signal(libc::SIGINT)));

        let (mut late, _, _) = supervisor(Some(now));
        assert_eq!(late.overdue(now - Duration::from_nanos(1)), None);
        assert_eq!(late.overdue(now), Some(Outcome::Timeout));
    }

    #[test]
    fn what_tells_the_run_to_end_beats_a_reset_that_came_first() {
        let now = Instant::now();
        let (mut supervisor, latch, _) = supervisor(None);
        latch.set(Outcome::Reset);
        supervisor.end(Outcome::Stopped);
        supervisor.on_signal(libc::SIGTERM, 2, now);
        assert_eq!(latch.get(), Some(Outcome::Reset));
        assert_eq!(supervisor.overdue(now), Some(Outcome::Stopped));
        assert_eq!(supervisor.state(), State::Ended);
    }

    #[test]
    fn a_signal_lets_a_paused_guest_run() {
        let (mut supervisor, latch, button) = supervisor(None);
        supervisor.set_state(State::Paused);
        supervisor.on_signal(libc::SIGTERM, 1, Instant::now());
        assert_eq!(supervisor.state(), State::PoweringOff);
        assert_eq!((button.presses.load(SeqCst), latch.get()), (1, None));
    }

    #[test]
    fn signal_that_nobody_has_seen_counts_at_a_reset() {
        let (mut supervisor, _, _) = supervisor(None);
        let (reader, mut writer) = UnixStream::pair().unwrap();
        supervisor.signals.streams[0].1 = reader;
        writer.write_all(&[0]).unwrap();
        let outcome = supervisor.overdue(Instant::now());
        assert_eq!(outcome, Some(Outcome::Signal(libc::SIGTERM)));
    }

    #[test]
    fn a_distant_deadline_does_not_overflow() {
        let now = Instant::now();
        let (mut supervisor, _, _) =
            supervisor(Some(now + Duration::from_secs(u64::from(u32::MAX))));
        assert_eq!(supervisor.check_deadlines(now), i32::MAX);
    }

    #[test]
    fn deliveries_are_counted() {
        let (signals, mut writers) = signals();
        let fd = signals.streams[0].1.as_raw_fd();
        assert_eq!(signals.take(fd), None);
        writers[0].1.write_all(&[0, 0]).unwrap();
        assert_eq!(signals.take(fd), Some((libc::SIGTERM, 2)));
        assert_eq!(signals.take(-1), None);
    }
}
