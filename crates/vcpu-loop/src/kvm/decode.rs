// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From `kvm_run` to [`Exit`], with every length that KVM gives checked against the page.

use kvm_bindings::*;

use super::run_page::{self, RunPage};
use crate::exit::{
    DebugExit, Details, Exit, FatalExit, Hypercall, HypercallAbi, HypervExit, INTERNAL_ERROR_WORDS,
    MMIO_MAX, SYSTEM_EVENT_WORDS, SystemEvent,
};

/// The exit that the last `KVM_RUN` left in the page.
///
/// Port and memory accesses are most of all exits, so they are decoded in line.
#[inline]
pub(super) fn decode<'a>(page: &'a mut RunPage, details: &'a mut Details) -> Exit<'a> {
    match page.exit_reason() {
        KVM_EXIT_IO => io(page, details),
        KVM_EXIT_MMIO => mmio(page, details),
        exit_reason => other(page, details, exit_reason),
    }
}

#[inline(never)]
fn other<'a>(page: &'a mut RunPage, details: &'a mut Details, exit_reason: u32) -> Exit<'a> {
    match exit_reason {
        KVM_EXIT_X86_RDMSR => {
            let msr = page.msr();
            Exit::Rdmsr {
                index: msr.index,
                data: &mut msr.data,
                error: &mut msr.error,
            }
        }
        KVM_EXIT_X86_WRMSR => {
            let msr = page.msr();
            Exit::Wrmsr {
                index: msr.index,
                data: msr.data,
                error: &mut msr.error,
            }
        }
        KVM_EXIT_HYPERCALL => hypercall(page),
        KVM_EXIT_XEN => xen(page, details),
        KVM_EXIT_HYPERV => Exit::Hyperv(hyperv(page)),
        KVM_EXIT_HLT => Exit::Hlt,
        KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        KVM_EXIT_SYSTEM_EVENT => details.event(system_event(page)),
        KVM_EXIT_DEBUG => {
            let arch = page.debug().arch;
            let kvm_debug_exit_arch {
                exception,
                pc,
                dr6,
                dr7,
                ..
            } = arch;
            Exit::Debug(DebugExit {
                exception,
                pc,
                dr6,
                dr7,
            })
        }
        KVM_EXIT_IOAPIC_EOI => Exit::IoapicEoi {
            vector: page.eoi().vector,
        },
        KVM_EXIT_DIRTY_RING_FULL => Exit::DirtyRingFull,
        KVM_EXIT_INTR => Exit::Interrupted,
        KVM_EXIT_IRQ_WINDOW_OPEN => Exit::InterruptWindow,
        KVM_EXIT_SET_TPR => Exit::SetTpr,
        KVM_EXIT_TPR_ACCESS => {
            let access = page.tpr_access();
            Exit::TprAccess {
                rip: access.rip,
                is_write: access.is_write != 0,
            }
        }
        KVM_EXIT_X86_BUS_LOCK => Exit::BusLock,
        KVM_EXIT_NOTIFY if page.notify().flags & KVM_NOTIFY_CONTEXT_INVALID == 0 => Exit::Notify,
        KVM_EXIT_AP_RESET_HOLD => Exit::ApResetHold,
        _ => details.fatal(fatal(page, exit_reason)),
    }
}

#[cold]
fn malformed(details: &mut Details, exit_reason: u32) -> Exit<'_> {
    details.fatal(FatalExit::Malformed { exit_reason })
}

#[inline]
fn io<'a>(page: &'a mut RunPage, details: &'a mut Details) -> Exit<'a> {
    let io = *page.io();
    if !matches!(io.size, 1 | 2 | 4) {
        return malformed(details, KVM_EXIT_IO);
    }
    let len = usize::from(io.size).saturating_mul(io.count as usize);
    match (page.data(io.data_offset, len), u32::from(io.direction)) {
        (Some(data), KVM_EXIT_IO_IN) => Exit::PioIn {
            port: io.port,
            size: io.size,
            data,
        },
        (Some(data), KVM_EXIT_IO_OUT) => Exit::PioOut {
            port: io.port,
            size: io.size,
            data,
        },
        _ => malformed(details, KVM_EXIT_IO),
    }
}

#[inline]
fn mmio<'a>(page: &'a mut RunPage, details: &'a mut Details) -> Exit<'a> {
    let mmio = page.mmio();
    let addr = mmio.phys_addr;
    let len = mmio.len as usize;
    if len == 0 || len > MMIO_MAX {
        return malformed(details, KVM_EXIT_MMIO);
    }
    let data = &mut mmio.data[..len];
    match mmio.is_write {
        0 => Exit::MmioRead { addr, data },
        _ => Exit::MmioWrite { addr, data },
    }
}

fn hypercall(page: &mut RunPage) -> Exit<'_> {
    let call = page.hypercall();
    Exit::Hypercall(Hypercall {
        abi: HypercallAbi::Kvm,
        number: call.nr,
        args: &call.args,
        long_mode: run_page::hypercall_flags(call) & 1 != 0,
        cpl: None,
        ret: &mut call.ret,
    })
}

fn system_event(page: &mut RunPage) -> SystemEvent {
    let event = page.system_event();
    SystemEvent {
        kind: event.type_,
        count: event.ndata.min(SYSTEM_EVENT_WORDS as u32) as u8,
        data: run_page::system_event_data(event),
    }
}

fn xen<'a>(page: &'a mut RunPage, details: &'a mut Details) -> Exit<'a> {
    let xen = page.xen();
    if xen.type_ != KVM_EXIT_XEN_HCALL {
        return malformed(details, KVM_EXIT_XEN);
    }
    let call = run_page::xen_hcall(xen);
    Exit::Xen(Hypercall {
        abi: HypercallAbi::Xen,
        number: call.input,
        args: &call.params,
        long_mode: call.longmode != 0,
        cpl: Some(call.cpl as u8),
        ret: &mut call.result,
    })
}

fn hyperv(page: &mut RunPage) -> HypervExit<'_> {
    let exit = page.hyperv();
    match exit.type_ {
        KVM_EXIT_HYPERV_SYNIC => {
            let synic = run_page::hyperv_synic(exit);
            HypervExit::Synic {
                msr: synic.msr,
                control: synic.control,
                event_page: synic.evt_page,
                message_page: synic.msg_page,
            }
        }
        KVM_EXIT_HYPERV_HCALL => {
            let call = run_page::hyperv_hcall(exit);
            HypervExit::Hypercall(Hypercall {
                abi: HypercallAbi::Hyperv,
                number: call.input,
                args: &call.params,
                long_mode: true,
                cpl: None,
                ret: &mut call.result,
            })
        }
        KVM_EXIT_HYPERV_SYNDBG => {
            let debug = run_page::hyperv_syndbg(exit);
            HypervExit::SynDbg {
                msr: debug.msr,
                control: debug.control,
                status: &mut debug.status,
                send_page: debug.send_page,
                recv_page: debug.recv_page,
                pending_page: debug.pending_page,
            }
        }
        kind => HypervExit::Unknown(kind),
    }
}

fn fatal(page: &mut RunPage, exit_reason: u32) -> FatalExit {
    match exit_reason {
        KVM_EXIT_UNKNOWN => FatalExit::Hardware {
            reason: page.hardware().hardware_exit_reason,
        },
        KVM_EXIT_EXCEPTION => {
            let exception = page.exception();
            FatalExit::Exception {
                vector: exception.exception,
                error_code: exception.error_code,
            }
        }
        KVM_EXIT_FAIL_ENTRY => {
            let entry = page.fail_entry();
            FatalExit::FailEntry {
                reason: entry.hardware_entry_failure_reason,
                cpu: entry.cpu,
            }
        }
        KVM_EXIT_INTERNAL_ERROR => {
            let error = page.internal();
            let count = error.ndata.min(INTERNAL_ERROR_WORDS as u32) as u8;
            FatalExit::InternalError {
                suberror: error.suberror,
                count,
                data: error.data,
            }
        }
        KVM_EXIT_NOTIFY => FatalExit::Notify {
            flags: page.notify().flags,
        },
        KVM_EXIT_MEMORY_FAULT => {
            let fault = page.memory_fault();
            FatalExit::MemoryFault {
                flags: fault.flags,
                gpa: fault.gpa,
                size: fault.size,
            }
        }
        _ => FatalExit::Unknown { exit_reason },
    }
}
