// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Signal handlers that restore the terminal, job control, and one signal that is ignored. No safe crate offers these
//! system calls: handlers on the alternate stack, in front of those of Rust's runtime.
#![allow(unsafe_code)]

use std::mem;
use std::ptr;
use std::sync::{Once, OnceLock};

use libc::{c_int, c_void, siginfo_t};

/// Signals that end the process by default.
const FATAL: [c_int; 20] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGALRM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGXCPU,
    libc::SIGABRT,
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGSYS,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGTRAP,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
];

/// Raised by an instruction: when the handler returns, they are raised again.
const FAULTS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];

type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// The functions that the handlers call. Set before the handlers are installed, then only read.
struct Hooks {
    restore: fn(),
    continued: fn(),
}

static HOOKS: OnceLock<Hooks> = OnceLock::new();
static RESIZED: OnceLock<fn()> = OnceLock::new();
/// The earlier dispositions of [`FATAL`] signals, by index. A fault is passed on to its earlier handler.
static PREVIOUS: [OnceLock<libc::sigaction>; FATAL.len()] =
    [const { OnceLock::new() }; FATAL.len()];

/// Calls `restore` when a fatal signal is about to end the process, and `continued` when the process continues after a
/// stop. Signals that have another handler or are ignored stay as they are. `restore` must be async-signal-safe: system
/// calls and atomics.
pub(crate) fn watch_signals(restore: fn(), continued: fn()) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = HOOKS.set(Hooks { restore, continued });
        for (signal, previous) in FATAL.into_iter().zip(&PREVIOUS) {
            let Some(now) = disposition(signal) else {
                continue;
            };
            // Rust's runtime handles SIGSEGV and SIGBUS to report stack overflows. Its handlers are called afterwards.
            let is_default = now.sa_sigaction == libc::SIG_DFL;
            if is_default || signal == libc::SIGSEGV || signal == libc::SIGBUS {
                let _ = previous.set(now);
                install(signal, on_fatal, 0);
            }
        }
        if disposition(libc::SIGCONT).is_some_and(|now| now.sa_sigaction == libc::SIG_DFL) {
            install(libc::SIGCONT, on_continue, libc::SA_RESTART);
        }
    });
}

/// Calls `resized` when the terminal has another size. `resized` must be async-signal-safe.
pub(crate) fn watch_resizes(resized: fn()) {
    let _ = RESIZED.set(resized);
    // By default the signal does nothing.
    if disposition(libc::SIGWINCH).is_some_and(|now| now.sa_sigaction == libc::SIG_DFL) {
        install(libc::SIGWINCH, on_resize, libc::SA_RESTART);
    }
}

/// Makes a write beyond the limit on file sizes (`ulimit -f`) an error, instead of the end of the process.
pub(crate) fn ignore_file_size_signal() {
    // SAFETY: takes numbers; nothing of ours runs when the signal comes.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Whether this process may use the terminal on standard input: it is in the foreground, or the terminal does no job
/// control for it.
pub(crate) fn in_foreground() -> bool {
    // SAFETY: takes a number, touches no memory of ours; a bad descriptor is an error.
    let group = unsafe { libc::tcgetpgrp(libc::STDIN_FILENO) };
    if group < 0 {
        // It is not our controlling terminal. Every other failure (EIO, EBADF) means that it is gone.
        return std::io::Error::last_os_error().raw_os_error() == Some(libc::ENOTTY);
    }
    // SAFETY: takes nothing, can't fail.
    group == unsafe { libc::getpgrp() }
}

/// Whether the process ignores `signal`.
pub(crate) fn is_ignored(signal: c_int) -> bool {
    disposition(signal).is_some_and(|now| now.sa_sigaction == libc::SIG_IGN)
}

fn disposition(signal: c_int) -> Option<libc::sigaction> {
    // SAFETY: sigaction is plain data for which all zeroes is a value.
    let mut now: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: `now` is valid for the write; nothing is installed.
    let result = unsafe { libc::sigaction(signal, ptr::null(), &mut now) };
    (result == 0).then_some(now)
}

fn install(signal: c_int, handler: Handler, flags: c_int) {
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    // On the alternate stack, which still works after a stack overflow.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | flags;
    // SAFETY: `action` is valid; `handler` has the signature that SA_SIGINFO asks for and does
    // only what is async-signal-safe.
    unsafe {
        libc::sigfillset(&mut action.sa_mask);
        libc::sigaction(signal, &action, ptr::null_mut());
    }
}

extern "C" fn on_fatal(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    if let Some(hooks) = HOOKS.get() {
        (hooks.restore)();
    }
    // SAFETY: the kernel gives handlers with SA_SIGINFO a valid siginfo.
    let from_kernel = unsafe { (*info).si_code } > 0;
    let index = FATAL.iter().position(|fatal| *fatal == signal);
    let previous = index.and_then(|index| PREVIOUS[index].get());
    match previous {
        // The instruction faults again after this returns.
        Some(previous) if from_kernel && FAULTS.contains(&signal) => {
            // SAFETY: `previous` came from sigaction for this signal; sigaction is async-signal-safe.
            unsafe { libc::sigaction(signal, previous, ptr::null_mut()) };
        }
        // It is blocked until this returns, and then ends the process.
        // SAFETY: both are async-signal-safe and take numbers.
        _ => unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        },
    }
}

extern "C" fn on_continue(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    if let Some(hooks) = HOOKS.get() {
        (hooks.continued)();
    }
}

extern "C" fn on_resize(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    if let Some(resized) = RESIZED.get() {
        resized();
    }
}
