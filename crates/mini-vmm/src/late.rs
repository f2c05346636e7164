// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a process does only after its guest has started, so that a guest that doesn't need it doesn't pay for it.
//!
//! A sandbox needs this list: a system call filter installed at the guest's start must allow these calls. Code that
//! does something else late must add an entry to [`LATE_ACTS`]; `docs/sandbox.md` has the same table. Reading, writing
//! and waiting on open descriptors is not late; `vcpu_loop::kvm::seccomp` lists the vCPUs' calls.

use std::fmt;

/// Whether a sealed machine (`--sealed on`) does something late, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// It happens before the guest starts, or not at all.
    Never,
    /// It stays late. It opens no file, socket, process or VM.
    Late,
    /// It stays late, but only on machines with this option.
    With(&'static str),
}

/// Something that happens late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LateAct {
    /// What happens.
    pub act: &'static str,
    /// Its purpose or time.
    pub when: &'static str,
    /// The role of the thread that does it.
    pub thread: &'static str,
    /// The system calls that it makes, other than waiting, reading and writing. Ioctls are in capitals.
    pub calls: &'static [&'static str],
    /// Whether sealed machines do it.
    pub sealed: Sealed,
}

/// One row of the table in `docs/sandbox.md`.
impl fmt::Display for LateAct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LateAct {
            act,
            when,
            thread,
            calls,
            sealed,
        } = self;
        write!(
            f,
            "| {act} | {when} | {thread} | `{}` | ",
            calls.join("` `")
        )?;
        match sealed {
            Sealed::Never => write!(f, "no |"),
            Sealed::Late => write!(f, "yes |"),
            Sealed::With(option) => write!(f, "with `{option}` |"),
        }
    }
}

/// All that happens late.
pub const LATE_ACTS: &[LateAct] = &[
    LateAct {
        act: "the host's CPU is looked up",
        when: "the first registration, `--hypercall auto`",
        thread: "vCPU",
        calls: &["openat", "read", "close"],
        sealed: Sealed::Never,
    },
    LateAct {
        act: "a guest of its own makes a hypercall",
        when: "the same, where the CPU has vmx or svm",
        thread: "vCPU, `kvm-check`",
        calls: &[
            "KVM_CREATE_VM",
            "KVM_CREATE_VCPU",
            "mmap",
            "fcntl",
            "eventfd2",
            "rt_sigaction",
            "clone3",
        ],
        sealed: Sealed::Never,
    },
    LateAct {
        act: "the message of a refusal says how much memory is available",
        when: "a reset for which the host has not enough memory",
        thread: "control",
        calls: &["openat", "read", "close"],
        sealed: Sealed::Never,
    },
    LateAct {
        act: "an interrupt line is connected",
        when: "a device's first interrupt",
        thread: "vCPU, `devices`, `io`, control",
        calls: &["eventfd2", "KVM_IRQFD"],
        sealed: Sealed::Late,
    },
    LateAct {
        act: "the thread of virtio devices starts",
        when: "a guest's driver starts one",
        thread: "vCPU",
        calls: &[
            "eventfd2",
            "epoll_create1",
            "epoll_ctl",
            "mmap",
            "mprotect",
            "clone3",
        ],
        sealed: Sealed::Late,
    },
    LateAct {
        act: "that thread leaves the CPUs of the vCPU that started it",
        when: "its start",
        thread: "`io`",
        calls: &["sched_setaffinity"],
        sealed: Sealed::Late,
    },
    LateAct {
        act: "KVM takes the notifications of a virtio queue, or no longer",
        when: "a guest's driver starts or resets a device, or moves a BAR",
        thread: "`io`, vCPU",
        calls: &["eventfd2", "epoll_ctl", "KVM_IOEVENTFD"],
        sealed: Sealed::Late,
    },
    LateAct {
        act: "an interrupt is sent as a message",
        when: "an interrupt of a PCI function, a hypercall that kicks",
        thread: "`io`, vCPU",
        calls: &["KVM_SIGNAL_MSI"],
        sealed: Sealed::Late,
    },
    LateAct {
        act: "random numbers are taken from the host",
        when: "a guest asks for some",
        thread: "`io`",
        calls: &["getrandom"],
        sealed: Sealed::With("--rng on"),
    },
    LateAct {
        act: "a disk's connection to the host is created",
        when: "a guest's driver starts the disk",
        thread: "`io`",
        calls: &[
            "io_uring_setup",
            "io_uring_register",
            "mmap",
            "munmap",
            "eventfd2",
            "timerfd_create",
            "fstat",
            "lseek",
        ],
        sealed: Sealed::With("--disk path=FILE"),
    },
    LateAct {
        act: "a disk's threads start",
        when: "its first request, if the host has no io_uring, or the image is qcow2 or has an overlay",
        thread: "`io`",
        calls: &["mmap", "mprotect", "clone3"],
        sealed: Sealed::With("--disk path=FILE"),
    },
    LateAct {
        act: "a disk's requests are executed",
        when: "a guest makes some",
        thread: "`io`, `disk`",
        calls: &[
            "io_uring_enter",
            "fdatasync",
            "fsync",
            "fallocate",
            "fstat",
            "lseek",
        ],
        sealed: Sealed::With("--disk path=FILE"),
    },
    LateAct {
        act: "a wait before a disk's requests are submitted again",
        when: "the host lacks resources for io_uring",
        thread: "`io`",
        calls: &["timerfd_create", "epoll_ctl"],
        sealed: Sealed::With("--disk path=FILE"),
    },
    LateAct {
        act: "a network's connection to the host is set up",
        when: "a guest's driver starts the network, or changes the number of its queues",
        thread: "`io`",
        calls: &[
            "TUNSETOFFLOAD",
            "TUNSETQUEUE",
            "epoll_ctl",
            "timerfd_create",
            "eventfd2",
        ],
        sealed: Sealed::With("--net"),
    },
    LateAct {
        act: "the metadata service makes a token",
        when: "a guest asks for one",
        thread: "`io`",
        calls: &["getrandom"],
        sealed: Sealed::With("PUT /mmds/config"),
    },
    LateAct {
        act: "a process of the host connects to the guest",
        when: "a process connects",
        thread: "`io`",
        calls: &["accept4", "epoll_ctl", "timerfd_create", "close"],
        sealed: Sealed::With("--vsock cid=N,socket=PATH"),
    },
    LateAct {
        act: "the guest connects to a process of the host",
        when: "a process of the guest connects",
        thread: "`io`",
        calls: &["socket", "connect", "epoll_ctl", "close"],
        sealed: Sealed::Never,
    },
    LateAct {
        act: "the queues of a device of another process start or stop",
        when: "a guest's driver starts or resets a shared directory or vhost-user device, or the machine pauses",
        thread: "`io`",
        calls: &[
            "eventfd2",
            "timerfd_create",
            "timerfd_settime",
            "epoll_ctl",
            "sendmsg",
            "recvfrom",
            "close",
        ],
        sealed: Sealed::With("--vhost-user socket=PATH,device=TYPE"),
    },
    LateAct {
        act: "such a process is connected to again",
        when: "it has ended, and a guest's driver starts the device",
        thread: "`io`",
        calls: &["socket", "connect", "close"],
        sealed: Sealed::Never,
    },
    LateAct {
        act: "a new disk or network is opened, and its device made",
        when: "a client of the API adds one, with `--hotplug`",
        thread: "`api`, control",
        calls: &[
            "openat",
            "statx",
            "fcntl",
            "ioctl",
            "lseek",
            "socketpair",
            "clone3",
            "vfork",
            "execve",
            "timerfd_create",
        ],
        sealed: Sealed::Never,
    },
    LateAct {
        act: "a device is removed, and what it uses is closed",
        when: "its guest gives it up, or a client wants it by force, with `--hotplug`",
        thread: "`io`, control",
        calls: &["KVM_IOEVENTFD", "munmap", "close"],
        sealed: Sealed::Late,
    },
    LateAct {
        act: "a console port waits for its other end, or accepts a client",
        when: "data, a client or a guest's driver comes",
        thread: "`io`",
        calls: &["accept4", "fcntl", "epoll_ctl", "close"],
        sealed: Sealed::With("--console-port name=N,to=WHERE"),
    },
    LateAct {
        act: "the guest learns the size of the terminal",
        when: "it has another size, or something is typed on a pseudo-terminal",
        thread: "`io`",
        calls: &["TIOCGWINSZ"],
        sealed: Sealed::With("--console WHERE"),
    },
    LateAct {
        act: "the guest's memory goes back to the host",
        when: "a guest's balloon grows, or it tells of free pages",
        thread: "`io`",
        calls: &["madvise", "mmap", "mincore"],
        sealed: Sealed::With("--balloon"),
    },
    LateAct {
        act: "a balloon is started",
        when: "a guest's driver starts",
        thread: "`io`",
        calls: &["eventfd2", "timerfd_create", "epoll_ctl"],
        sealed: Sealed::With("--balloon"),
    },
    LateAct {
        act: "kvmclock is read",
        when: "a hypercall that asks for it",
        thread: "vCPU",
        calls: &["KVM_GET_CLOCK", "KVM_GET_DEVICE_ATTR"],
        sealed: Sealed::Late,
    },
    LateAct {
        act: "the VM's own state is read",
        when: "`Save` by a handle",
        thread: "control",
        calls: &["KVM_GET_IRQCHIP", "KVM_GET_PIT2", "KVM_GET_CLOCK"],
        sealed: Sealed::Late,
    },
    LateAct {
        act: "a snapshot is written",
        when: "a handle or a client of the API asks for it",
        thread: "control",
        calls: &[
            "openat",
            "getdents64",
            "readlink",
            "mkdir",
            "flock",
            "statx",
            "lseek",
            "pread64",
            "write",
            "pwrite64",
            "ftruncate",
            "getrandom",
            "fsync",
            "rename",
            "renameat2",
            "unlink",
            "unlinkat",
            "rmdir",
        ],
        sealed: Sealed::Never,
    },
    LateAct {
        act: "the host marks pages that are written, and tells which",
        when: "a Diff, or a snapshot of a machine with `track_dirty_pages`",
        thread: "control",
        calls: &[
            "openat",
            "userfaultfd",
            "UFFDIO_API",
            "UFFDIO_REGISTER",
            "PAGEMAP_SCAN",
            "write",
            "close",
        ],
        sealed: Sealed::Never,
    },
    LateAct {
        act: "the guest's memory is taken from it, and unmapped",
        when: "the end",
        thread: "control",
        calls: &["KVM_SET_USER_MEMORY_REGION", "munmap"],
        sealed: Sealed::Late,
    },
    LateAct {
        act: "the heap grows or shrinks",
        when: "any time",
        thread: "any",
        calls: &["brk", "mmap", "mremap", "munmap", "madvise"],
        sealed: Sealed::Late,
    },
    LateAct {
        act: "a fatal signal gives the terminal back, and then has its usual effect",
        when: "such a signal",
        thread: "any",
        calls: &["rt_sigaction", "TCSETS"],
        sealed: Sealed::Late,
    },
    LateAct {
        act: "a client attaches",
        when: "a client connects",
        thread: "`console-in`",
        calls: &["accept4"],
        sealed: Sealed::With("--serial socket=PATH"),
    },
    LateAct {
        act: "a client of the API is accepted",
        when: "a client connects",
        thread: "`api`",
        calls: &["accept4", "ioctl"],
        sealed: Sealed::With("--api-sock PATH"),
    },
    LateAct {
        act: "a disk's image is replaced",
        when: "a client asks for it",
        thread: "`api`, `io`",
        calls: &[
            "faccessat",
            "statx",
            "openat",
            "fstat",
            "fcntl",
            "lseek",
            "io_uring_setup",
            "io_uring_register",
            "mmap",
            "mprotect",
            "munmap",
            "eventfd2",
            "epoll_ctl",
            "clone3",
            "close",
        ],
        sealed: Sealed::Never,
    },
    LateAct {
        act: "the limits of a disk or network change",
        when: "a client asks for it",
        thread: "`io`",
        calls: &["timerfd_create", "timerfd_settime", "epoll_ctl"],
        sealed: Sealed::With("--api-sock PATH"),
    },
    LateAct {
        act: "the log's file is opened",
        when: "a client asks for it",
        thread: "`api`",
        calls: &["openat", "close"],
        sealed: Sealed::Never,
    },
    LateAct {
        act: "the API's socket is removed",
        when: "the end",
        thread: "main",
        calls: &["statx", "unlink"],
        sealed: Sealed::With("--api-sock PATH"),
    },
    LateAct {
        act: "the socket's file is removed",
        when: "the end",
        thread: "control",
        calls: &["statx", "unlink"],
        sealed: Sealed::With("--serial socket=PATH"),
    },
    LateAct {
        act: "the vsock's socket is removed",
        when: "the end",
        thread: "control",
        calls: &["statx", "unlink"],
        sealed: Sealed::With("--vsock cid=N,socket=PATH"),
    },
    LateAct {
        act: "a console port's socket is removed",
        when: "the end",
        thread: "control",
        calls: &["statx", "unlink"],
        sealed: Sealed::With("--console-port name=N,to=unix:PATH"),
    },
    LateAct {
        act: "the user's side is asked what is unread",
        when: "the end",
        thread: "`console-out`",
        calls: &["TIOCGPTPEER", "FIONREAD"],
        sealed: Sealed::With("--serial pty"),
    },
    LateAct {
        act: "the next machine is built, from descriptors that are open",
        when: "a reset",
        thread: "control",
        calls: &[
            "KVM_CREATE_VM",
            "KVM_CREATE_IRQCHIP",
            "KVM_CREATE_VCPU",
            "mmap",
            "mprotect",
            "madvise",
            "munmap",
            "pread64",
            "eventfd2",
            "epoll_create1",
            "timerfd_create",
            "fcntl",
            "rt_sigaction",
            "clone3",
        ],
        sealed: Sealed::With("--on-reboot reset"),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls that open a file, a socket, a process or a VM.
    const OPENING: [&str; 10] = [
        "open",
        "openat",
        "openat2",
        "creat",
        "socket",
        "socketpair",
        "connect",
        "fork",
        "execve",
        "KVM_CREATE_VM",
    ];

    #[test]
    fn a_sealed_machine_opens_nothing_but_the_vm_of_a_reset() {
        for late in LATE_ACTS {
            let opens = late.calls.iter().any(|call| OPENING.contains(call));
            let is_reset = late.sealed == Sealed::With("--on-reboot reset");
            assert!(!opens || late.sealed == Sealed::Never || is_reset, "{late}");
        }
    }
}
