// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Calls that have no safe form in Rust: the probe's only `unsafe`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::Child;

use kvm_bindings::{kvm_userspace_memory_region, kvm_xsave};
use kvm_ioctls::{VcpuFd, VmFd};

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
    let memory = map(size, flags, -1, 0)?;
    if let Some((at, code)) = code {
        assert!(at + code.len() <= size);
        // SAFETY: the mapping is `size` bytes long, which was checked, and nothing else has its address yet.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), memory.cast::<u8>().add(at), code.len());
        }
    }
    give(vm, slot, gpa, size, memory)
}

/// Gives `vm` memory from `file`, from `offset` on. What the guest writes does not reach the file.
pub fn give_file(
    vm: &VmFd,
    slot: u32,
    gpa: u64,
    size: usize,
    file: (&File, u64),
) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    let memory = map(size, flags, file.0.as_raw_fd(), file.1 as libc::off_t)?;
    give(vm, slot, gpa, size, memory)
}

/// A new mapping, at an address that the kernel chooses.
fn map(size: usize, flags: i32, file: RawFd, offset: libc::off_t) -> io::Result<*mut libc::c_void> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping affects no existing memory.
    match unsafe { libc::mmap(std::ptr::null_mut(), size, access, flags, file, offset) } {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        memory => Ok(memory),
    }
}

/// Makes `memory`, a new mapping of `size` bytes that stays until the process ends, a slot of `vm`.
fn give(vm: &VmFd, slot: u32, gpa: u64, size: usize, memory: *mut libc::c_void) -> io::Result<()> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: gpa,
        memory_size: size as u64,
        userspace_addr: memory as u64,
    };
    // SAFETY: the region is a mapping of this module, to which no reference exists and which is never unmapped.
    unsafe { vm.set_user_memory_region(region) }?;
    Ok(())
}

/// Gives a vCPU its floating point and vector registers.
pub fn set_xsave(vcpu: &VcpuFd, xsave: &kvm_xsave) -> io::Result<()> {
    // SAFETY: KVM reads more than the structure only for features that a process must ask for (AMX). This one doesn't.
    Ok(unsafe { vcpu.set_xsave(xsave) }?)
}

/// How a traced thread goes on.
#[derive(Clone, Copy, Debug)]
pub enum Go {
    /// For one instruction.
    Step,
    /// To the next entry to a system call, or return from one.
    ToCall,
}

/// Why a traced thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It went where [`Go`] said.
    Step,
    /// The kernel announces something: the thread was interrupted or created, or has created one.
    Event,
    /// It is to get a signal.
    Signal(i32),
    /// It ended with this exit code, or 128 plus the signal that killed it.
    Ended(i32),
}

/// Attaches to a thread, and to those that it creates, without stopping it.
pub fn attach(thread: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACESYSGOOD;
    trace(libc::PTRACE_SEIZE, thread, options)
}

/// Makes an attached thread stop.
pub fn interrupt(thread: i32) -> io::Result<()> {
    trace(libc::PTRACE_INTERRUPT, thread, 0)
}

/// Lets a stopped thread go on, with a signal unless that is 0. It may have been killed in the meantime.
pub fn go(thread: i32, go: Go, signal: i32) -> io::Result<()> {
    let request = match go {
        Go::Step => libc::PTRACE_SINGLESTEP,
        Go::ToCall => libc::PTRACE_SYSCALL,
    };
    match trace(request, thread, signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result,
    }
}

fn trace(request: libc::c_uint, thread: i32, data: i32) -> io::Result<()> {
    let data = i64::from(data);
    // SAFETY: none of these requests has a pointer.
    match unsafe { libc::ptrace(request, thread, 0i64, data) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until a traced thread stops or ends.
pub fn wait_for_stop() -> io::Result<(i32, Stop)> {
    let mut status = 0;
    // SAFETY: the pointer is to a live integer.
    let thread = unsafe { libc::waitpid(-1, &mut status, libc::__WALL) };
    if thread < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((thread, stop(status)))
}

fn stop(status: i32) -> Stop {
    if libc::WIFEXITED(status) {
        return Stop::Ended(libc::WEXITSTATUS(status));
    }
    if libc::WIFSIGNALED(status) {
        return Stop::Ended(128 + libc::WTERMSIG(status));
    }
    const TRAP: i32 = libc::SIGTRAP;
    const CALL: i32 = libc::SIGTRAP | 0x80;
    match (status >> 16, libc::WSTOPSIG(status)) {
        (0, TRAP | CALL) => Stop::Step,
        (0, signal) => Stop::Signal(signal),
        _ => Stop::Event,
    }
}

/// A stream socket of `AF_VSOCK`, which `how` binds or connects to this address.
fn vsock(
    cid: u32,
    port: u32,
    how: unsafe extern "C" fn(i32, *const libc::sockaddr, libc::socklen_t) -> i32,
) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let socket = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made it for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: a structure of integers, for which all zeros are a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    (address.svm_cid, address.svm_port) = (cid, port);
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer is to a live address of that length.
    match unsafe { how(socket.as_raw_fd(), (&raw const address).cast(), len) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Connects to a port of the host.
pub fn vsock_connect(port: u32) -> io::Result<OwnedFd> {
    vsock(libc::VMADDR_CID_HOST, port, libc::connect)
}

/// A socket with this port, which does not listen yet.
pub fn vsock_bind(port: u32) -> io::Result<OwnedFd> {
    vsock(libc::VMADDR_CID_ANY, port, libc::bind)
}
