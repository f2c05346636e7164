// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What crosses `execve`: a descriptor passed to a program, one inherited from the caller, and ignored signals.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets the program that `command` starts have `fd`, under the same number. Other programs that this process starts
/// don't get it.
pub(crate) fn pass(command: &mut Command, fd: OwnedFd) {
    let keep = move || {
        // SAFETY: `fcntl` is async-signal-safe and takes no pointer here. The closure owns the descriptor, so it is open.
        match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: between fork and exec the closure makes one async-signal-safe call. An error from `errno` is made without
    // an allocation.
    unsafe { command.pre_exec(keep) };
}

/// Lets the program that `command` starts begin with every signal at its default. An ignored one would stay ignored: a
/// shell's background job ignores SIGINT and SIGQUIT, and so would all that it starts.
pub(crate) fn default_signals(command: &mut Command) {
    let reset = || {
        // SIGKILL and SIGSTOP can't be set, and have no other action.
        for signal in 1..=libc::SIGSYS {
            // SAFETY: `signal` is async-signal-safe. The default action needs no handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes async-signal-safe calls only.
    unsafe { command.pre_exec(reset) };
}

/// Duplicates the inherited descriptor with the number `fd`. Programs that this process starts get neither.
///
/// # Errors
/// No such descriptor is open (`EBADF`), or the process has none left.
pub(crate) fn inherited(fd: u32) -> io::Result<OwnedFd> {
    // No descriptor has a larger number, and -1 is never open.
    let fd = RawFd::try_from(fd).unwrap_or(-1);
    // SAFETY: `fcntl` takes no pointer here. A number that is not open is an error.
    let new = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if new == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above. `fd` was open a moment ago; the flag only matters for programs that are started.
    unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: the descriptor is new, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Stdio;

    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;

    /// What a program says about its descriptor `fd`.
    fn is_open(mut command: Command, fd: RawFd) -> bool {
        let command = command.args(["-c", &format!("test -e /proc/self/fd/{fd}")]);
        command.stdout(Stdio::null()).status().unwrap().success()
    }

    #[test]
    fn only_the_program_it_is_passed_to_has_a_descriptor() {
        let (reader, _writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        // A number that no other test's descriptor has.
        let fd = rustix::io::fcntl_dupfd_cloexec(&reader, 400).unwrap();
        let number = fd.as_raw_fd();
        assert!(!is_open(Command::new("sh"), number));
        let mut command = Command::new("sh");
        pass(&mut command, fd);
        assert!(is_open(command, number));
        assert!(!is_open(Command::new("sh"), number));
    }

    #[test]
    fn an_inherited_descriptor_is_passed_to_no_program() {
        let (reader, _writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let number = rustix::io::fcntl_dupfd_cloexec(&reader, 450).unwrap();
        let flags = |fd: &dyn AsFd| fcntl_getfd(fd.as_fd()).unwrap();
        rustix::io::fcntl_setfd(&number, FdFlags::empty()).unwrap();
        let own = inherited(number.as_raw_fd() as u32).unwrap();
        assert_eq!([flags(&number), flags(&own)], [FdFlags::CLOEXEC; 2]);
        assert_ne!(own.as_raw_fd(), number.as_raw_fd());
    }

    #[test]
    fn a_closed_descriptor_is_an_error() {
        for fd in [1 << 20, u32::MAX] {
            let error = inherited(fd).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        }
    }
}
