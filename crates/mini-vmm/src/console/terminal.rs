// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Raw mode of the terminal on standard input. It is restored however the process ends.
//!
//! The terminal is shared with the shell and its other jobs. It is changed only while this process is in the
//! foreground. In the background the shell owns it; output continues, but there is no input.

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

/// The terminal's settings before the first change. Signal handlers read it.
static COOKED: OnceLock<Termios> = OnceLock::new();
/// Whether the terminal currently has our settings.
static IS_RAW: AtomicBool = AtomicBool::new(false);
/// Whether the terminal must not be changed any more, because the process is about to end.
static GIVEN_BACK: AtomicBool = AtomicBool::new(false);
/// Signalled when the process continues after a stop.
static CONTINUED: OnceLock<Wake> = OnceLock::new();

/// Signalled when the terminal has another size.
static RESIZED: OnceLock<Wake> = OnceLock::new();

/// Called by the handler of SIGWINCH.
fn note_resized() {
    if let Some(event) = RESIZED.get() {
        event.signal();
    }
}

/// Readable after the terminal got another size.
pub(super) fn resized() -> io::Result<&'static Wake> {
    if RESIZED.get().is_none() {
        let event = Wake::new()?;
        RESIZED.get_or_init(|| event);
        terminal_signals::watch_resizes(note_resized);
    }
    RESIZED.get().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The line end on standard error: on a raw terminal a line feed alone doesn't return to the first column.
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

/// Restores the terminal for good. Signal handlers call it, so it uses only system calls and atomics.
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
        // Without draining: a terminal stopped with Ctrl-S never drains.
        let _ = tcsetattr(stdio::stdin(), OptionalActions::Now, cooked);
    }
}

/// Called by the handler of SIGCONT.
fn note_continued() {
    if let Some(event) = CONTINUED.get() {
        event.signal();
    }
}

/// Keeps the terminal on standard input in raw mode until dropped.
#[derive(Debug)]
pub(super) struct RawTerminal {
    continued: &'static Wake,
}

impl RawTerminal {
    /// Switches to raw mode if this process is in the foreground, else once it is ([`follow_job_control`]).
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
        // Checks that it can be read. In the background it has the shell's settings.
        tcgetattr(stdio::stdin())?;
        follow_job_control();
        Ok(terminal)
    }

    /// Readable after the process was stopped and continued.
    pub(super) fn continued(&self) -> &'static Wake {
        self.continued
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        without_stopping(give_back);
    }
}

/// Sets the mode for the terminal's current owner. Returns whether that is this process.
pub(super) fn follow_job_control() -> bool {
    if !terminal_signals::in_foreground() {
        // The shell has set its own mode, so there is nothing to restore.
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
        // First the flag: a signal in between restores settings that are not changed yet, which is harmless.
        IS_RAW.store(true, Ordering::SeqCst);
        if let Err(error) = tcsetattr(stdio::stdin(), OptionalActions::Now, &raw) {
            log::warn!("the terminal can't be set to raw mode, keys work line by line: {error}");
        }
        // Another thread may have panicked meanwhile and restored the terminal before this change.
        if GIVEN_BACK.load(Ordering::SeqCst) {
            IS_RAW.store(false, Ordering::SeqCst);
            restore();
        }
    });
    true
}

/// Runs `change` so that it can't stop this process, even if it has just lost the foreground.
fn without_stopping(change: impl FnOnce()) {
    let blocked = block_signal(libc::SIGTTOU).is_ok();
    change();
    if blocked {
        // Fails only if the signal is not blocked.
        let _ = unblock_signal(libc::SIGTTOU);
    }
}

/// Makes a panic restore the terminal before it prints its message.
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
