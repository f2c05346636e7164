// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The signal half of a kick. vmm-sys-util is not enough: it installs handlers without checking for an existing one and
//! without `SA_ONSTACK`, and signals only threads with a `JoinHandle`.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// A thread of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tid(libc::pid_t);

impl Tid {
    /// The calling thread.
    pub(crate) fn current() -> Self {
        // Not `libc::gettid`: the standard library references that function weakly, so a static program with LTO may be
        // linked without it.
        // SAFETY: the call has no arguments and always succeeds.
        Tid(unsafe { libc::syscall(libc::SYS_gettid) } as libc::pid_t)
    }

    /// Sends a signal. The caller makes sure that the thread is alive; otherwise the signal is lost, or goes to a later
    /// thread with the same id.
    pub(crate) fn kill(self, signal: libc::c_int) {
        // SAFETY: the call only takes numbers and accesses no memory of this process. The handler of the kick signal
        // does nothing.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.0, signal) };
    }
}

/// Does nothing: running any handler takes the thread out of `KVM_RUN`.
extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn ours() -> libc::sighandler_t {
    nothing as extern "C" fn(_, _, _) as libc::sighandler_t
}

/// What [`install`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Installed {
    /// The handler is ours, installed now or earlier.
    Ours,
    /// The signal has another handler, which was not replaced.
    Taken,
}

/// Installs the handler that does nothing, unless there is another one.
///
/// It has no `SA_RESTART`, so that blocking system calls of the thread return too. It has `SA_ONSTACK`, because threads
/// of other languages' run-times (Go, for example) have stacks that are too small for a handler. `SIG_IGN` doesn't
/// count as a handler: it may be inherited from the parent process.
pub(crate) fn install(signal: libc::c_int) -> io::Result<Installed> {
    let before = exchange(signal, None)?;
    if before == ours() {
        return Ok(Installed::Ours);
    }
    if before != libc::SIG_DFL && before != libc::SIG_IGN {
        return Ok(Installed::Taken);
    }
    exchange(signal, Some(ours()))?;
    Ok(Installed::Ours)
}

/// Reads the handler of a signal, and replaces it with `handler`, which must be [`ours`].
fn exchange(
    signal: libc::c_int,
    handler: Option<libc::sighandler_t>,
) -> io::Result<libc::sighandler_t> {
    let new = handler.map(|handler| {
        let mut mask = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` fills the whole set that it is given.
        let sa_mask = unsafe {
            libc::sigemptyset(mask.as_mut_ptr());
            mask.assume_init()
        };
        libc::sigaction {
            sa_sigaction: handler,
            sa_mask,
            sa_flags: libc::SA_SIGINFO | libc::SA_ONSTACK,
            sa_restorer: None,
        }
    });
    let new = new.as_ref().map_or(ptr::null(), ptr::from_ref);
    let mut old = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: `new` is null or points to a complete structure whose handler is safe to run at any time on any thread;
    // `old` has space for one structure.
    let result = unsafe { libc::sigaction(signal, new, old.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the successful call filled it.
    Ok(unsafe { old.assume_init() }.sa_sigaction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::signal::{SIGRTMAX, register_signal_handler};

    extern "C" fn foreign(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

    #[test]
    fn a_foreign_handler_is_not_overwritten() {
        let signal = SIGRTMAX();
        register_signal_handler(signal, foreign).unwrap();
        let before = exchange(signal, None).unwrap();
        assert_eq!(install(signal).unwrap(), Installed::Taken);
        assert_eq!(exchange(signal, None).unwrap(), before);
    }

    #[test]
    fn ours_is_installed_once_for_other_stacks() {
        let signal = SIGRTMAX() - 1;
        for _ in 0..2 {
            assert_eq!(install(signal).unwrap(), Installed::Ours);
        }
        let mut action = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: the call fills `action`, and changes nothing else.
        let action = unsafe {
            assert_eq!(libc::sigaction(signal, ptr::null(), action.as_mut_ptr()), 0);
            action.assume_init()
        };
        assert_ne!(action.sa_flags & libc::SA_ONSTACK, 0);
        assert_eq!(action.sa_flags & libc::SA_RESTART, 0);
        assert!(install(0).is_err(), "there is no signal 0");
    }
}
