// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Decodes `kvm_run` into an [`Exit`]. Every length from KVM is checked against the page.

use kvm_bindings::*;

use crate::exit::{
    DebugExit, Details, Exit, FatalExit, Hypercall, HypercallAbi, HypervExit, INTERNAL_ERROR_WORDS,
    MMIO_MAX, MemoryFault, OtherExit, SYSTEM_EVENT_WORDS, SystemEvent,
};
use crate::sys::run_page::{self, RunPage};

/// The exit that the last `KVM_RUN` left in the page.
///
/// Port and memory accesses are the most frequent exits, so they are decoded inline.
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
        KVM_EXIT_X86_RDMSR => rdmsr(page),
        KVM_EXIT_X86_WRMSR => wrmsr(page),
        KVM_EXIT_HYPERCALL => hypercall(page),
        KVM_EXIT_XEN => xen(page, details),
        KVM_EXIT_HYPERV => Exit::Hyperv(hyperv(page)),
        KVM_EXIT_HLT => Exit::Hlt,
        KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        KVM_EXIT_SYSTEM_EVENT => details.event(system_event(page)),
        KVM_EXIT_DEBUG => Exit::Debug(debug(page)),
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
        KVM_EXIT_MEMORY_FAULT => Exit::MemoryFault(memory_fault(page)),
        _ => match fatal(page, exit_reason) {
            Some(exit) => details.fatal(exit),
            None => Exit::Other(OtherExit {
                reason: exit_reason,
                data: page.bytes(),
            }),
        },
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

fn rdmsr(page: &mut RunPage) -> Exit<'_> {
    let msr = page.msr();
    Exit::Rdmsr {
        index: msr.index,
        data: &mut msr.data,
        error: &mut msr.error,
    }
}

fn wrmsr(page: &mut RunPage) -> Exit<'_> {
    let msr = page.msr();
    Exit::Wrmsr {
        index: msr.index,
        data: msr.data,
        error: &mut msr.error,
    }
}

fn debug(page: &mut RunPage) -> DebugExit {
    let debug = page.debug().arch;
    DebugExit {
        exception: debug.exception,
        pc: debug.pc,
        dr6: debug.dr6,
        dr7: debug.dr7,
    }
}

fn memory_fault(page: &mut RunPage) -> MemoryFault {
    let fault = page.memory_fault();
    MemoryFault {
        flags: fault.flags,
        gpa: fault.gpa,
        size: fault.size,
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

/// The exits after which KVM can't continue.
fn fatal(page: &mut RunPage, exit_reason: u32) -> Option<FatalExit> {
    Some(match exit_reason {
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
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;
    use std::os::unix::fs::FileExt;

    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    /// The offset of the union of all exits.
    const UNION: u64 = 32;

    /// A run page in a file, which the test fills as KVM does.
    fn with_exit(reason: u32, union: &[u64], test: impl FnOnce(Exit<'_>)) -> RunPage {
        let file = TempFile::new().unwrap().into_file();
        file.set_len(4096 * 3).unwrap();
        let mut page = RunPage::map(&file, 4096 * 3).unwrap();
        let at = offset_of!(kvm_run, exit_reason) as u64;
        file.write_all_at(&reason.to_le_bytes(), at).unwrap();
        let bytes: Vec<u8> = union.iter().flat_map(|word| word.to_le_bytes()).collect();
        file.write_all_at(&bytes, UNION).unwrap();
        test(decode(&mut page, &mut Details::default()));
        page
    }

    #[test]
    fn an_exit_without_a_variant_is_passed_on_whole() {
        assert_eq!(offset_of!(kvm_run, __bindgen_anon_1) as u64, UNION);
        // 40 is KVM_EXIT_TDX, which the bindings don't have yet; KVM_EXIT_S390_TSCH is of another architecture.
        for reason in [40, 42, 1000, KVM_EXIT_S390_TSCH] {
            let words: Vec<u64> = (1..=32).collect();
            let mut page = with_exit(reason, &words, |exit| {
                assert!(exit.needs_completion());
                let Exit::Other(other) = exit else {
                    panic!("{exit:?}")
                };
                assert_eq!((other.reason, other.data.len()), (reason, 256));
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                assert_eq!(other.data, bytes);
                other.data[255] = 0x5a;
            });
            assert_eq!(page.bytes()[255], 0x5a, "KVM finds the answer");
        }
    }

    #[test]
    fn a_memory_fault_says_where() {
        with_exit(KVM_EXIT_MEMORY_FAULT, &[8, 0x1000, 0x2000], |exit| {
            let expected = MemoryFault {
                flags: 8,
                gpa: 0x1000,
                size: 0x2000,
            };
            assert!(matches!(exit, Exit::MemoryFault(fault) if fault == expected));
        });
    }

    #[test]
    fn what_ends_a_vcpu_is_fatal() {
        for reason in [
            KVM_EXIT_UNKNOWN,
            KVM_EXIT_EXCEPTION,
            KVM_EXIT_FAIL_ENTRY,
            KVM_EXIT_INTERNAL_ERROR,
        ] {
            with_exit(reason, &[], |exit| assert!(matches!(exit, Exit::Fatal(_))));
        }
        // KVM_EXIT_NOTIFY, with a lost context and with a valid one.
        with_exit(KVM_EXIT_NOTIFY, &[1], |exit| {
            assert!(matches!(exit, Exit::Fatal(FatalExit::Notify { flags: 1 })));
        });
        with_exit(KVM_EXIT_NOTIFY, &[0], |exit| {
            assert!(matches!(exit, Exit::Notify))
        });
    }

    #[test]
    fn lengths_beyond_the_page_are_malformed() {
        // `io` is direction, size, port and count in a word, then the offset of the data.
        let io = |size: u64, count: u64| 1 | size << 8 | 0x60 << 16 | count << 32;
        let size = size_of::<kvm_run>() as u64;
        for (word, offset) in [
            (io(1, 4), 4096 * 2 - 3),
            (io(4, u64::from(u32::MAX)), 4096),
            (io(3, 1), 4096),
            (io(1, 1), size - 1),
            (io(1, 1), u64::MAX),
        ] {
            with_exit(KVM_EXIT_IO, &[word, offset], |exit| {
                let malformed = FatalExit::Malformed {
                    exit_reason: KVM_EXIT_IO,
                };
                assert!(matches!(exit, Exit::Fatal(fatal) if *fatal == malformed));
            });
        }
        with_exit(KVM_EXIT_IO, &[io(1, 4), 4096 * 2 - 4], |exit| {
            assert!(matches!(exit, Exit::PioOut { size: 1, data, .. } if data.len() == 4));
        });
    }
}
