// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Calls that have no safe form in Rust: the probe's only `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::process::Child;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

/// How a process ended, with the CPU time of all its threads in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub user: u64,
    pub system: u64,
    /// Its exit code, or 128 plus the signal that killed it.
    pub code: i32,
}

/// Waits for the end of `child`.
pub fn wait(child: Child) -> io::Result<End> {
    let (mut status, pid) = (0, child.id() as libc::pid_t);
    // SAFETY: a structure of integers, for which all zeros are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the types that the call fills in. The child is ours, and was not
    // waited for, because `child` is consumed.
    while unsafe { libc::wait4(pid, &mut status, 0, &mut usage) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let nanoseconds =
        |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    let code = match libc::WIFEXITED(status) {
        true => libc::WEXITSTATUS(status),
        false => 128 + libc::WTERMSIG(status),
    };
    Ok(End {
        user: nanoseconds(usage.ru_utime),
        system: nanoseconds(usage.ru_stime),
        code,
    })
}

/// Gives `vm` new memory of this many bytes in `slot` at a guest-physical address, with `code` at offset `at`. The
/// memory stays mapped until the process ends.
pub fn give_memory(
    vm: &VmFd,
    slot: u32,
    gpa: u64,
    size: usize,
    code: Option<(usize, &[u8])>,
) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping affects no existing memory.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    if let Some((at, code)) = code {
        assert!(at + code.len() <= size);
        // SAFETY: the mapping is `size` bytes long, which was checked, and nothing else has its address yet.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), memory.cast::<u8>().add(at), code.len());
        }
    }
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: gpa,
        memory_size: size as u64,
        userspace_addr: memory as u64,
    };
    // SAFETY: the region is the mapping from above, to which no reference exists and which is never unmapped.
    unsafe { vm.set_user_memory_region(region) }?;
    Ok(())
}
