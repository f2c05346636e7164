// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The filter of a sealed machine's process.

use mini_vmm::late::{LATE_ACTS, Sealed};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};
use vcpu_loop::kvm::seccomp;

/// What a process always does with what it has: read, write, wait, start and end threads.
const USUAL: [i64; 43] = [
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_writev,
    libc::SYS_close,
    // Debug builds check a descriptor before they close it.
    libc::SYS_fcntl,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_timerfd_settime,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_tgkill,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_prctl,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The number of a late act's system call. `None` for an ioctl.
fn number(call: &str) -> Option<i64> {
    Some(match call {
        "accept4" => libc::SYS_accept4,
        "brk" => libc::SYS_brk,
        "clone3" => libc::SYS_clone3,
        "close" => libc::SYS_close,
        "epoll_create1" => libc::SYS_epoll_create1,
        "epoll_ctl" => libc::SYS_epoll_ctl,
        "eventfd2" => libc::SYS_eventfd2,
        "fallocate" => libc::SYS_fallocate,
        "fcntl" => libc::SYS_fcntl,
        "fdatasync" => libc::SYS_fdatasync,
        "fsync" => libc::SYS_fsync,
        "fstat" => libc::SYS_fstat,
        "getrandom" => libc::SYS_getrandom,
        "io_uring_enter" => libc::SYS_io_uring_enter,
        "io_uring_register" => libc::SYS_io_uring_register,
        "io_uring_setup" => libc::SYS_io_uring_setup,
        "lseek" => libc::SYS_lseek,
        "madvise" => libc::SYS_madvise,
        "mmap" => libc::SYS_mmap,
        "mprotect" => libc::SYS_mprotect,
        "mremap" => libc::SYS_mremap,
        "munmap" => libc::SYS_munmap,
        "pread64" => libc::SYS_pread64,
        "rt_sigaction" => libc::SYS_rt_sigaction,
        "sched_setaffinity" => libc::SYS_sched_setaffinity,
        "statx" => libc::SYS_statx,
        "timerfd_create" => libc::SYS_timerfd_create,
        "unlink" => libc::SYS_unlink,
        ioctl if ioctl.starts_with(|c: char| c.is_ascii_uppercase()) => return None,
        other => panic!("what is {other}?"),
    })
}

/// The ioctls of vCPUs' threads, which their crate lists.
fn of_vcpus() -> Vec<seccomp::Ioctl> {
    [seccomp::RUN, seccomp::REPORT, seccomp::SAVE].concat()
}

/// The request of a late act's ioctl; `None` for a system call.
fn request(call: &str) -> Option<u64> {
    if let Some(ioctl) = of_vcpus().iter().find(|ioctl| ioctl.name == call) {
        return Some(ioctl.request.into());
    }
    Some(match call {
        "FIONREAD" => libc::FIONREAD,
        "KVM_GET_CLOCK" => 0x8030_ae7c,
        "KVM_GET_IRQCHIP" => 0xc208_ae62,
        "KVM_GET_PIT2" => 0x8070_ae9f,
        "KVM_IOEVENTFD" => 0x4040_ae79,
        "KVM_IRQFD" => 0x4020_ae76,
        "KVM_SET_USER_MEMORY_REGION" => 0x4020_ae46,
        "KVM_SIGNAL_MSI" => 0x4020_aea5,
        "TCSETS" => libc::TCSETS,
        "TIOCGPTPEER" => libc::TIOCGPTPEER,
        "TUNSETOFFLOAD" => libc::TUNSETOFFLOAD,
        "TUNSETQUEUE" => libc::TUNSETQUEUE,
        call if number(call).is_some() => return None,
        other => panic!("what is {other}?"),
    })
}

/// What a reset needs; it comes with every ioctl of a start.
const KVM_CREATE_VM: &str = "KVM_CREATE_VM";

fn filter(
    rules: Vec<(i64, Vec<SeccompRule>)>,
    others: SeccompAction,
    answer: SeccompAction,
) -> BpfProgram {
    let rules = rules.into_iter().collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, others, answer, arch);
    filter.unwrap().try_into().unwrap()
}

fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> Vec<SeccompRule> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);
    vec![SeccompRule::new(vec![condition.unwrap()]).unwrap()]
}

/// Installs a filter that ends the process at any call that is neither usual nor a late act of a sealed machine with
/// these options.
pub fn seal(options: &[&str]) {
    // clone3's flags are in memory, where a filter can't see them. `clone` works as well.
    let no_clone3 = vec![(libc::SYS_clone3, vec![])];
    let no_clone3 = filter(
        no_clone3,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
    );
    apply_filter_all_threads(&no_clone3).unwrap();
    let acts = LATE_ACTS.iter().filter(|late| match late.sealed {
        Sealed::Never => false,
        Sealed::Late => true,
        Sealed::With(option) => options.contains(&option),
    });
    let late = acts.flat_map(|late| late.calls);
    let mut rules: Vec<(i64, Vec<SeccompRule>)> = late
        .clone()
        .filter_map(|call| number(call))
        .chain(USUAL)
        .map(|call| (call, vec![]))
        .collect();
    // A thread, not a process.
    let thread = libc::CLONE_THREAD as u64;
    let thread = rule(0, SeccompCmpOp::MaskedEq(thread), thread);
    rules.push((libc::SYS_clone, thread));
    let of_vcpus = of_vcpus().into_iter().map(|ioctl| ioctl.request.into());
    let requests = of_vcpus.chain(late.clone().filter_map(|call| request(call)));
    let requests = match late.clone().any(|call| *call == KVM_CREATE_VM) {
        true => vec![],
        false => requests
            .flat_map(|request| rule(1, SeccompCmpOp::Eq, request))
            .collect(),
    };
    rules.push((libc::SYS_ioctl, requests));
    let allowed = filter(rules, SeccompAction::KillProcess, SeccompAction::Allow);
    apply_filter_all_threads(&allowed).unwrap();
}
