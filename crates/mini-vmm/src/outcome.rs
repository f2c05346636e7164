// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a run ended, and its exit code.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::sync::lock;

/// Exit code of a start-up or configuration error.
pub const EXIT_ERROR: u8 = 1;
/// Exit code of a usage error on the command line.
pub const EXIT_USAGE: u8 = 2;

/// How a run of the machine ended. Host failures are errors, not outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset (ACPI reset register, i8042 0xFE, CF9).
    Reset,
    /// A vCPU can't go on: triple fault, KVM internal error, failed entry, a panic of its thread.
    VcpuFailure,
    /// A device can't go on: its thread panicked, or the host can't wait for its events.
    DeviceFailure,
    /// The guest reported a panic (pvpanic).
    GuestPanic,
    /// `--timeout` ran out.
    Timeout,
    /// The guest wrote this value to the debug-exit port.
    DebugExit(u8),
    /// The guest ended the run with this status, by the hypercall `VMM_HC_EXIT`. It exists on the routes
    /// [`Pio`](crate::config::HypercallRoute::Pio) and [`Forward`](crate::config::HypercallRoute::Forward).
    GuestExit(u8),
    /// The process received this signal, and the guest did not power off in time.
    Signal(i32),
    /// The user typed the escape sequence on the console.
    ConsoleQuit,
    /// A client ended the run with [`Command::Stop`](crate::vmm::control::Command::Stop). The command line has no such
    /// client.
    Stopped,
}

impl Outcome {
    /// The name of this kind of outcome, for programs.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::PowerOff => "power-off",
            Outcome::Reset => "reset",
            Outcome::VcpuFailure => "vcpu-failure",
            Outcome::DeviceFailure => "device-failure",
            Outcome::GuestPanic => "guest-panic",
            Outcome::Timeout => "timeout",
            Outcome::DebugExit(_) => "debug-exit",
            Outcome::GuestExit(_) => "guest-exit",
            Outcome::Signal(_) => "signal",
            Outcome::ConsoleQuit => "console-quit",
            Outcome::Stopped => "stopped",
        }
    }

    /// The exit code of the process, as the page `docs/exit-codes.md` of the repository lists it.
    ///
    /// # Example
    /// ```
    /// use mini_vmm::outcome::Outcome;
    /// assert_eq!(Outcome::PowerOff.exit_code(), 0);
    /// assert_eq!(Outcome::DebugExit(3).exit_code(), 7);
    /// assert_eq!(Outcome::Signal(15).exit_code(), 143);
    /// ```
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::PowerOff | Outcome::Stopped => 0,
            Outcome::Reset => 32,
            Outcome::VcpuFailure | Outcome::DeviceFailure => 33,
            Outcome::GuestPanic => 34,
            Outcome::Timeout => 36,
            // As in QEMU's isa-debug-exit. The value's top bit doesn't fit an exit code.
            Outcome::DebugExit(value) => (value << 1) | 1,
            // The guest's status as it is. It may equal another code of this table.
            Outcome::GuestExit(status) => status,
            Outcome::Signal(signal) => 128u8.wrapping_add(signal as u8),
            Outcome::ConsoleQuit => 128 + libc::SIGINT as u8,
        }
    }
}

/// Where devices and the event loop report the outcome. The first report wins, since later ones are consequences of it.
/// Clones share one latch.
#[derive(Clone, Debug)]
pub struct OutcomeLatch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    is_set: AtomicBool,
    outcome: Mutex<Option<Outcome>>,
    event: EventFd,
}

impl OutcomeLatch {
    /// Creates an empty latch.
    ///
    /// # Errors
    /// When the process has no file descriptor left for its eventfd.
    pub fn new() -> io::Result<Self> {
        Ok(OutcomeLatch(Arc::new(Shared {
            is_set: AtomicBool::new(false),
            outcome: Mutex::new(None),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })))
    }

    /// Reports `outcome`; returns whether it was the first report.
    pub fn set(&self, outcome: Outcome) -> bool {
        let mut first = lock(&self.0.outcome);
        if first.is_some() {
            return false;
        }
        *first = Some(outcome);
        self.0.is_set.store(true, Ordering::Release);
        // Fails only if the counter is full, and then the event loop wakes anyway.
        let _ = self.0.event.write(1);
        true
    }

    /// Whether an outcome was reported. Costs one relaxed load on the exit path.
    pub fn is_set(&self) -> bool {
        self.0.is_set.load(Ordering::Relaxed)
    }

    /// The outcome, if there is one.
    pub fn get(&self) -> Option<Outcome> {
        *lock(&self.0.outcome)
    }

    /// Becomes readable when an outcome is reported.
    pub fn event(&self) -> &EventFd {
        &self.0.event
    }
}

/// Reports [`Outcome::DeviceFailure`] if it is dropped by a panic, for a thread without which devices don't work.
pub(crate) struct FailOnPanic<'a>(pub(crate) &'a OutcomeLatch);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() && self.0.set(Outcome::DeviceFailure) {
            let thread = thread::current();
            log::error!(
                "thread {} panicked, so the guest's devices don't work any more; report the message above as a bug",
                thread.name().unwrap_or("unnamed")
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_outcome_and_an_end_is_not() {
        let latch = OutcomeLatch::new().unwrap();
        let run = |panics: bool| {
            let latch = latch.clone();
            let thread = thread::spawn(move || {
                let _fails = FailOnPanic(&latch);
                assert!(!panics, "as the test wants it");
            });
            thread.join().is_err()
        };
        assert!(!run(false));
        assert_eq!(latch.get(), None);
        assert!(run(true));
        assert_eq!(latch.get(), Some(Outcome::DeviceFailure));
    }

    #[test]
    fn first_outcome_wins() {
        let latch = OutcomeLatch::new().unwrap();
        assert!(!latch.is_set());
        assert_eq!(latch.get(), None);
        assert!(latch.set(Outcome::GuestPanic));
        assert!(!latch.clone().set(Outcome::Reset));
        assert!(latch.is_set());
        assert_eq!(latch.get(), Some(Outcome::GuestPanic));
        assert_eq!(latch.event().read().unwrap(), 1);
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let codes = [
            (Outcome::PowerOff, 0),
            (Outcome::Reset, 32),
            (Outcome::VcpuFailure, 33),
            (Outcome::DeviceFailure, 33),
            (Outcome::GuestPanic, 34),
            (Outcome::Timeout, 36),
            (Outcome::DebugExit(0), 1),
            (Outcome::DebugExit(0xff), 0xff),
            (Outcome::GuestExit(0), 0),
            (Outcome::GuestExit(42), 42),
            (Outcome::GuestExit(255), 255),
            (Outcome::Signal(libc::SIGTERM), 143),
            (Outcome::ConsoleQuit, 130),
            (Outcome::Stopped, 0),
        ];
        for (outcome, code) in codes {
            assert_eq!(outcome.exit_code(), code, "{outcome:?}");
        }
    }
}
