// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's side in a real VM: this program's own code, copied to guest memory above 4 GiB, mapped at
//! the same virtual addresses and entered at CPL 0. The host does only what the test needs.
#![allow(
    unsafe_code,
    reason = "the guest is code of this crate, the memory is mapped by hand"
)]
#![allow(clippy::unwrap_used)]

use std::arch::global_asm;
use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_enable_cap, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{
    Cap, Kvm, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuExit,
    VcpuFd, VmFd,
};
use para_abi::guest::{HypercallStub, ParaPage, probe, register, wrmsr, wrmsr_fixup};
use para_abi::{
    Call, Convention, MSR_KVM_API_MAGIC, ParaStatePayload, Registers, Registration, Width,
};

static PAGE: ParaPage = ParaPage::new();
static RESULTS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

const fn code(registration: Registration) -> u64 {
    match registration {
        Registration::Registered { host_version } => 0x100 | host_version as u64,
        Registration::Refused { host_version, .. } => 0x200 | host_version as u64,
        Registration::Fault => 0x300,
        Registration::Swallowed => 0x400,
    }
}

/// One argument, hidden from the compiler. Otherwise it would build arrays of them with SSE instructions,
/// which a KVM that emulates the guest may not know.
fn a(value: u64) -> u64 {
    std::hint::black_box(value)
}

/// The guest. It has no operating system, so it calls only this crate.
extern "sysv64" fn guest_main(page_gpa: u64, stub_gpa: u64) -> ! {
    let stub = HypercallStub::built_in();
    // SAFETY: the guest is at CPL 0 and its #GP handler uses the fixup; the host passed the addresses.
    unsafe {
        RESULTS[0].store(
            stub.para(1, [a(0), a(0), a(0), a(0), a(0), a(0)]),
            Ordering::Relaxed,
        );
        let write = |index, value| wrmsr(index, value);
        RESULTS[1].store(
            code(register(&PAGE, page_gpa | 8, stub_gpa, write)),
            Ordering::Relaxed,
        );
        RESULTS[2].store(code(probe(&PAGE, page_gpa, write)), Ordering::Relaxed);
        RESULTS[3].store(
            code(register(&PAGE, page_gpa, stub_gpa, write)),
            Ordering::Relaxed,
        );
        RESULTS[4].store(
            stub.para(0x10, [a(1), a(2), a(3), a(4), a(5), a(6)]),
            Ordering::Relaxed,
        );
        RESULTS[5].store(stub.kvm(0x20, [a(1), a(2), a(3), a(4)]), Ordering::Relaxed);
        RESULTS[6].store(
            stub.xen(0x30, [a(1), a(2), a(3), a(4), a(5), a(6)]),
            Ordering::Relaxed,
        );
        RESULTS[7].store(
            u64::from_le_bytes(first_eight(stub.bytes())),
            Ordering::Relaxed,
        );
        std::arch::asm!("hlt", options(noreturn));
    }
}

const fn first_eight(b: [u8; 6]) -> [u8; 8] {
    [b[0], b[1], b[2], b[3], b[4], b[5], 0, 0]
}

extern "sysv64" fn guest_fault(saved_rip: &mut u64) {
    if let Some(resume) = wrmsr_fixup(*saved_rip) {
        *saved_rip = resume;
    }
}

// Vector 13: the error code is on top of the interrupted RIP. A fault of other code happens again.
global_asm!(
    "guest_fault_entry:",
    "push rax", "push rcx", "push rdx", "push rsi", "push rdi", "push r8", "push r9", "push r10", "push r11",
    "lea rdi, [rsp + 80]",
    "call {handler}",
    "pop r11", "pop r10", "pop r9", "pop r8", "pop rdi", "pop rsi", "pop rdx", "pop rcx", "pop rax",
    "add rsp, 8",
    "iretq",
    handler = sym guest_fault,
);

unsafe extern "sysv64" {
    static guest_fault_entry: u8;
}

const LOW_SIZE: usize = 16 << 20;
const HIGH_SIZE: usize = 64 << 20;
const HIGH_GPA: u64 = 4 << 30;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const STACK_TOP: u64 = 0x2_0000;
const ROOT: u64 = 0x10_0000;
const PORT: u16 = 0xf5;

/// Guest memory, page tables and the guest addresses of this program's pages.
struct Memory {
    low: *mut u8,
    high: *mut u8,
    next_table: u64,
    next_page: u64,
    pages: BTreeMap<u64, u64>,
}

impl Memory {
    fn new() -> Self {
        let map = |size| {
            let (protection, flags) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            );
            // SAFETY: a new mapping at an address of the kernel's choice. It stays until the process ends.
            let address =
                unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
            assert_ne!(address, libc::MAP_FAILED);
            address.cast::<u8>()
        };
        let (low, high) = (map(LOW_SIZE), map(HIGH_SIZE));
        Self {
            low,
            high,
            next_table: ROOT + 0x1000,
            next_page: HIGH_GPA,
            pages: BTreeMap::new(),
        }
    }

    fn host(&self, gpa: u64, length: usize) -> *mut u8 {
        let (base, start, size) = if gpa < HIGH_GPA {
            (self.low, 0, LOW_SIZE)
        } else {
            (self.high, HIGH_GPA, HIGH_SIZE)
        };
        let offset = usize::try_from(gpa - start).unwrap();
        assert!(offset + length <= size, "{gpa:#x} isn't guest memory");
        base.wrapping_add(offset)
    }

    fn write(&self, gpa: u64, bytes: &[u8]) {
        let target = self.host(gpa, bytes.len());
        // SAFETY: `host` checked the range, and no vCPU runs.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) }
    }

    fn read<const N: usize>(&self, gpa: u64) -> [u8; N] {
        // SAFETY: as in `write`; bytes have no alignment.
        unsafe { self.host(gpa, N).cast::<[u8; N]>().read() }
    }

    fn map(&mut self, virtual_address: u64, gpa: u64) {
        let mut table = ROOT;
        for shift in [39, 30, 21] {
            let slot = table + (virtual_address >> shift & 0x1ff) * 8;
            let mut entry = u64::from_le_bytes(self.read(slot));
            if entry == 0 {
                entry = self.next_table | 3;
                self.next_table += 0x1000;
                self.write(slot, &entry.to_le_bytes());
            }
            table = entry & !0xfff;
        }
        self.write(
            table + (virtual_address >> 12 & 0x1ff) * 8,
            &(gpa | 3).to_le_bytes(),
        );
    }

    /// Maps a copy of this program's image, and of the anonymous memory after it, at the same virtual addresses.
    fn copy_program(&mut self) {
        let program = fs::read_link("/proc/self/exe").unwrap();
        let mut end = 0;
        for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (from, to) = fields[0].split_once('-').unwrap();
            let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
            let ours = fields
                .get(5)
                .is_some_and(|name| *name == program.to_str().unwrap());
            if !(ours || fields.len() == 5 && from == end) || !fields[1].starts_with('r') {
                continue;
            }
            end = to;
            for address in (from..to).step_by(4096) {
                let source = std::ptr::with_exposed_provenance::<[u8; 4096]>(address as usize);
                // SAFETY: the kernel lists the page as mapped and readable. Nothing writes the parts that matter.
                let bytes = unsafe { source.read_volatile() };
                let gpa = self.next_page;
                self.next_page += 4096;
                self.write(gpa, &bytes);
                self.map(address, gpa);
                self.pages.insert(address, gpa);
            }
        }
    }

    fn gpa(&self, address: usize) -> u64 {
        self.pages[&(address as u64 & !0xfff)] + (address as u64 & 0xfff)
    }
}

fn set_up(kvm: &Kvm) -> (VmFd, VcpuFd, Memory) {
    let mut memory = Memory::new();
    let vm = kvm.create_vm().unwrap();
    let slots = [
        (0, memory.low, LOW_SIZE),
        (HIGH_GPA, memory.high, HIGH_SIZE),
    ];
    for (slot, (gpa, host, size)) in (0..).zip(slots) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: gpa,
            memory_size: size as u64,
            userspace_addr: host.expose_provenance() as u64,
        };
        // SAFETY: the mapping stays until the process ends.
        unsafe { vm.set_user_memory_region(region).unwrap() };
    }
    let reasons = u64::from(MsrExitReason::Filter.bits());
    let capability = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        args: [reasons, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&capability).unwrap();
    let flags = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    let range = MsrFilterRange {
        flags,
        base: MSR_KVM_API_MAGIC,
        msr_count: 1,
        bitmap: &[0; 8],
    };
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[range])
        .unwrap();

    memory.copy_program();
    for gpa in (0..ROOT).step_by(4096) {
        memory.map(gpa, gpa);
    }
    memory.write(
        GDT,
        &[0, 0x00af_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff]
            .map(u64::to_le_bytes)
            .concat(),
    );
    let entry = (&raw const guest_fault_entry).expose_provenance() as u64;
    let gate = entry & 0xffff | 8 << 16 | 0x8e00 << 32 | (entry >> 16 & 0xffff) << 48;
    memory.write(
        IDT + 13 * 16,
        &[gate, entry >> 32].map(u64::to_le_bytes).concat(),
    );

    let vcpu = set_up_vcpu(kvm, &vm, &memory);
    (vm, vcpu, memory)
}

fn set_up_vcpu(kvm: &Kvm, vm: &VmFd, memory: &Memory) -> VcpuFd {
    let vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap())
        .unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    let code = kvm_segment {
        limit: u32::MAX,
        selector: 8,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: 16,
        type_: 3,
        l: 0,
        db: 1,
        ..code
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.gdt = kvm_dtable {
        base: GDT,
        limit: 23,
        ..Default::default()
    };
    sregs.idt = kvm_dtable {
        base: IDT,
        limit: 14 * 16 - 1,
        ..Default::default()
    };
    sregs.cr0 = 0x8005_0033;
    sregs.cr3 = ROOT;
    sregs.cr4 = 0x620;
    sregs.efer = 0x500;
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = vcpu.get_regs().unwrap();
    regs.rip = guest_main as extern "sysv64" fn(u64, u64) -> ! as usize as u64;
    (regs.rsp, regs.rflags) = (STACK_TOP - 8, 2);
    regs.rdi = memory.gpa(PAGE.address());
    regs.rsi = memory.gpa(HypercallStub::built_in().address());
    vcpu.set_regs(&regs).unwrap();
    vcpu
}

/// The host's side: rules R3 to R8, without the memory checks.
fn host_wrmsr(memory: &Memory, gpa: u64) -> bool {
    if !para_abi::is_para_state_aligned(gpa) {
        return false;
    }
    let mut page = ParaStatePayload::from_bytes(&memory.read(gpa));
    page.host_version = 1;
    if page.is_newer_than_host() {
        page.ret = para_abi::ParaErrno::KVM_EINVAL.as_ret();
    } else {
        memory.write(page.hypercall_gpa, &[0xe6, PORT as u8, 0xc3, 0xcc]);
        page.ret = 0;
    }
    memory.write(gpa, &page.to_bytes());
    true
}

fn host_call(vcpu: &VcpuFd) -> Call {
    let mut regs = vcpu.get_regs().unwrap();
    let registers = Registers {
        rax: regs.rax,
        rbx: regs.rbx,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        rbp: regs.rbp,
        r8: regs.r8,
        r9: regs.r9,
        r10: regs.r10,
    };
    let convention = match registers.rax {
        0x10 => Convention::Para2007,
        0x20 => Convention::Kvm,
        _ => Convention::Xen,
    };
    regs.rax = registers.rax + 0x1_0000_0000;
    vcpu.set_regs(&regs).unwrap();
    convention.call(Width::Long, &registers)
}

#[test]
fn h14_a_guest_above_4_gib_registers_and_calls() {
    let skip =
        |reason: &str| eprintln!("SKIP: h14_a_guest_above_4_gib_registers_and_calls: {reason}");
    if std::env::var_os("MINI_VMM_NO_KVM").is_some_and(|value| value == "1") {
        return skip("MINI_VMM_NO_KVM is set");
    }
    let Ok(kvm) = Kvm::new() else {
        return skip("/dev/kvm can't be used");
    };
    if !kvm.check_extension(Cap::X86UserSpaceMsr) || !kvm.check_extension(Cap::X86MsrFilter) {
        return skip("this KVM has no MSR filters");
    }
    // SAFETY: `alarm` takes no memory. It ends the test if the guest hangs.
    unsafe { libc::alarm(600) };
    let (_vm, mut vcpu, memory) = set_up(&kvm);
    let (mut written, mut calls) = (Vec::new(), Vec::new());
    loop {
        let pio = match vcpu.run().unwrap() {
            VcpuExit::X86Wrmsr(exit) => {
                written.push((exit.index, exit.data));
                *exit.error = u8::from(!host_wrmsr(&memory, exit.data));
                false
            }
            VcpuExit::IoOut(PORT, [_]) => true,
            VcpuExit::Hlt => break,
            other => {
                let other = format!("{other:?}");
                panic!("{other} after {written:x?} at {:#x?}", vcpu.get_regs());
            }
        };
        if pio {
            calls.push(host_call(&vcpu));
        }
    }
    // SAFETY: no handler, no memory.
    unsafe { libc::alarm(0) };

    let page = memory.gpa(PAGE.address());
    assert!(page >= HIGH_GPA);
    let magic = MSR_KVM_API_MAGIC;
    assert_eq!(written, [(magic, page | 8), (magic, page), (magic, page)]);
    let expected = [
        Call {
            nr: 0x10,
            args: [1, 2, 3, 4, 5, 6],
        },
        Call {
            nr: 0x20,
            args: [1, 2, 3, 4, 0, 0],
        },
        Call {
            nr: 0x30,
            args: [1, 2, 3, 4, 5, 6],
        },
    ];
    assert_eq!(calls, expected);
    let results = RESULTS
        .each_ref()
        .map(|slot| u64::from_le_bytes(memory.read(memory.gpa(std::ptr::from_ref(slot).addr()))));
    let patched = u64::from_le_bytes([0xe6, 0xf5, 0xc3, 0xcc, 0xff, 0xc3, 0, 0]);
    let returned = [0x1_0000_0010, 0x1_0000_0020, 0x1_0000_0030, patched];
    assert_eq!(
        results[..4],
        [para_abi::STUB_UNPATCHED_RESULT, 0x300, 0x201, 0x101]
    );
    assert_eq!(results[4..], returned);
}
