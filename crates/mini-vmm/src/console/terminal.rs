// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Raw mode of the terminal on standard input, given back however the process ends.
//!
//! The terminal is shared with the shell and its other jobs. It is changed only while this process
//! is in the foreground; in the background the shell owns it, and output goes on without input.

use std::io::{self, Write};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Once, OnceLock};

use rustix::stdio;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use vmm_sys_util::signal::{block_signal, unblock_signal};

use super::line_start;
use crate::sync::Wake;
use crate::sys::terminal as terminal_signals;

/// The terminal's settings when it was first ours to change; read in signal handlers.
static COOKED: OnceLock<Termios> = OnceLock::new();
/// Whether the terminal has our settings now.
static IS_RAW: AtomicBool = AtomicBool::new(false);
/// Whether the terminal is not to be changed any more: the process is about to end.
static GIVEN_BACK: AtomicBool = AtomicBool::new(false);
/// Signalled when the process goes on after it was stopped.
static CONTINUED: OnceLock<Wake> = OnceLock::new();

/// What ends a line on standard error now: on a raw terminal a line feed alone does not return to
/// the first column.
pub fn line_end() -> &'static str {
    if IS_RAW.load(Ordering::Relaxed) {
        "\r\n"
    } else {
        "\n"
    }
}

/// Whether standard input is a terminal.
pub(super) fn is_terminal() -> bool {
    isatty(stdio::stdin())
}

/// Gives the terminal back, for good. Called from signal handlers: system calls and atomics only.
fn give_back() {
    GIVEN_BACK.store(true, Ordering::SeqCst);
    if IS_RAW.swap(false, Ordering::SeqCst) {
        restore();
    }
}

fn restore() {
    if !terminal_signals::in_foreground() {
        return;
    }
    if let Some(cooked) = COOKED.get() {
        // Now, without draining: a terminal that was stopped with Ctrl-S never drains.
        let _ = tcsetattr(stdio::stdin(), OptionalActions::Now, cooked);
    }
}

/// What the handler of SIGCONT does.
fn note_continued() {
    if let Some(event) = CONTINUED.get() {
        event.signal();
    }
}

/// The terminal on standard input in raw mode, for as long as this lives.
#[derive(Debug)]
pub(super) struct RawTerminal {
    continued: &'static Wake,
}

impl RawTerminal {
    /// Switches to raw mode if this process is in the foreground, else as soon as it is
    /// ([`follow_job_control`]).
    pub(super) fn enter() -> io::Result<RawTerminal> {
        let continued = match CONTINUED.get() {
            Some(event) => event,
            None => {
                let event = Wake::new()?;
                CONTINUED.get_or_init(|| event)
            }
        };
        GIVEN_BACK.store(false, Ordering::SeqCst);
        terminal_signals::watch_signals(give_back, note_continued);
        watch_panics();
        let terminal = RawTerminal { continued };
        // That it can be read at all; in the background it has the shell's settings.
        tcgetattr(stdio::stdin())?;
        follow_job_control();
        Ok(terminal)
    }

    /// Readable after the process was stopped and goes on.
    pub(super) fn continued(&self) -> &'static Wake {
        self.continued
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        without_stopping(give_back);
    }
}

/// Brings the mode in line with who owns the terminal now; whether that is this process.
pub(super) fn follow_job_control() -> bool {
    if !terminal_signals::in_foreground() {
        // The shell has set its own mode; there is nothing left to give back.
        IS_RAW.store(false, Ordering::SeqCst);
        return false;
    }
    let Ok(now) = tcgetattr(stdio::stdin()) else {
        return false;
    };
    let cooked = COOKED.get_or_init(|| now);
    if GIVEN_BACK.load(Ordering::SeqCst) {
        return true;
    }
    let mut raw = cooked.clone();
    raw.make_raw();
    without_stopping(|| {
        // First the flag: a signal in between restores what was not changed yet.
        IS_RAW.store(true, Ordering::SeqCst);
        if let Err(error) = tcsetattr(stdio::stdin(), OptionalActions::Now, &raw) {
            log::warn!("the terminal can't be set to raw mode, keys work line by line: {error}");
        }
        // Another thread panicked meanwhile, and may have restored before the change.
        if GIVEN_BACK.load(Ordering::SeqCst) {
            IS_RAW.store(false, Ordering::SeqCst);
            restore();
        }
    });
    true
}

/// Runs `change` so that it can't stop this process, should it have lost the foreground just now.
fn without_stopping(change: impl FnOnce()) {
    let blocked = block_signal(libc::SIGTTOU).is_ok();
    change();
    if blocked {
        // The only failure is that it is not blocked.
        let _ = unblock_signal(libc::SIGTTOU);
    }
}

/// Makes a panic give the terminal back before it prints its message.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            without_stopping(give_back);
            let _ = write!(io::stderr(), "{}", line_start());
            previous(info);
        }));
    });
}
