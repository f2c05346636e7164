// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that try something, show the result byte for byte, and continue: many cases in one start.
//!
//! A guest decides nothing. It writes memory to COM1, and the test knows the expected bytes.

use std::sync::Once;

use kvm_ioctls::{Cap, Kvm};
use mini_vmm::layout::{self, MIB, PAGE_SIZE};

use super::asm::Asm;
use super::{Ended, Vm, guest, is_emulated};

/// The MSR of the 2007 API.
pub const MAGIC: u32 = 0x8765_5678;
/// The end of memory of [`Vm::new`].
pub const TOP: u64 = 32 * MIB;
/// Pages for `struct kvm_vcpu_para_state`.
pub const PARA: u64 = 2 * MIB;
/// Pages for stubs.
pub const STUB: u64 = 3 * MIB;
/// The number of faults, and the last one's error code, one byte each.
pub const FAULTS: u64 = 4 * MIB;
/// The registers after a call.
pub const REGISTERS: u64 = FAULTS + 0x100;
/// The target address of a call.
pub const TARGET: u64 = FAULTS + 0x200;
/// Where user code returns to.
const BACK: u64 = FAULTS + 0x208;
/// The operand of LGDT.
const GDTR: u64 = FAULTS + 0x210;
const GDT: u64 = FAULTS + PAGE_SIZE;
const TSS: u64 = FAULTS + 2 * PAGE_SIZE;
/// The top of the stack.
const FAULT_STACK: u64 = FAULTS + 4 * PAGE_SIZE;
const USER_STACK: u64 = FAULTS + 5 * PAGE_SIZE;

/// Selectors of the lab's GDT. 0x10 and 0x18 are as at the guest's start.
pub const CODE_64: u8 = 0x10;
pub const CODE_32: u8 = 0x20;
const USER_DATA: u8 = 0x2b;
const USER_CODE: u8 = 0x33;
const TASK: u8 = 0x38;

/// The six bytes that guests of 2007 reserve, `mov eax, -38; ret`, and two that must not change.
pub const UNPATCHED: [u8; 8] = [0xb8, 0xda, 0xff, 0xff, 0xff, 0xc3, 0x90, 0x90];

/// The flags at a call: the arithmetic flags and the one that is always set.
pub const FLAGS: u32 = 0x8d7;
/// A hypercall route, and what the guest sees of it.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub flag: &'static str,
    /// The bytes that are patched in.
    pub stub: [u8; 4],
    /// Whether calls reach the VMM. Otherwise KVM answers them.
    pub is_ours: bool,
}

impl Route {
    pub const PIO: Route = Route {
        flag: "--hypercall=pio",
        stub: [0xe6, 0xf5, 0xc3, 0xcc],
        is_ours: true,
    };

    /// The program's arguments. The debug-exit device would take the ports next to the stub's.
    pub fn args(&self) -> [&'static str; 2] {
        [self.flag, "--debug-exit=off"]
    }

    pub fn is_pio(&self) -> bool {
        self.stub[0] == 0xe6
    }
}

/// The routes of this host's KVM. Without hardware virtualization, a native instruction never completes.
pub fn routes(test: &str) -> Vec<Route> {
    static TOLD: Once = Once::new();
    let mut routes = vec![Route::PIO];
    if is_emulated() {
        TOLD.call_once(|| {
            eprintln!("SKIP: {test} [vendor]: no svm or vmx in /proc/cpuinfo, VMCALL may not end");
        });
        return routes;
    }
    let stub = native_stub();
    routes.push(Route {
        flag: "--hypercall=vendor",
        stub,
        is_ours: false,
    });
    let Ok(kvm) = Kvm::new() else {
        return routes;
    };
    // KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL
    if kvm.check_extension_int(Cap::XenHvm) & 2 != 0 {
        routes.push(Route {
            flag: "--hypercall=forward",
            stub,
            is_ours: true,
        });
    } else {
        TOLD.call_once(|| {
            eprintln!("SKIP: {test} [forward]: this KVM does not hand over hypercalls");
        });
    }
    routes
}

/// VMCALL or VMMCALL, and RET, by the host's virtualization extension.
fn native_stub() -> [u8; 4] {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let is_svm = cpuinfo.split_ascii_whitespace().any(|flag| flag == "svm");
    [0x0f, 0x01, if is_svm { 0xd9 } else { 0xc1 }, 0xc3]
}

/// The general registers by their encoding. RFLAGS takes RSP's place.
pub type Registers = [u64; 16];
pub const RAX: usize = 0;
pub const RCX: usize = 1;
pub const RDX: usize = 2;
pub const RBX: usize = 3;
pub const RSP: usize = 4;
pub const RBP: usize = 5;
pub const RSI: usize = 6;
pub const RDI: usize = 7;

/// A different value in every register.
pub fn registers(rax: u64) -> Registers {
    let mut registers = std::array::from_fn(|i| 0xa1b2_c300_d4e5_f600 + 0x11_0000_0011 * i as u64);
    registers[RAX] = rax;
    registers[RSP] = FLAGS.into();
    registers
}

/// What a guest should show, and what it showed.
#[derive(Clone, Debug)]
pub struct Record {
    pub name: String,
    pub expected: Vec<u8>,
    pub seen: Vec<u8>,
}

impl Record {
    /// Checks that the guest showed the expected bytes.
    #[track_caller]
    pub fn check(&self, route: &Route) {
        let Record {
            name,
            expected,
            seen,
        } = self;
        assert!(
            seen == expected,
            "{}: {name}\n    seen {seen:02x?}\nexpected {expected:02x?}",
            route.flag
        );
    }
}

/// A guest under construction.
#[derive(Clone, Debug, Default)]
pub struct Lab {
    pub asm: Asm,
    records: Vec<Record>,
}

impl Lab {
    /// Shows a case's pieces of memory. Concatenated, they must be `expected`.
    pub fn show(&mut self, name: &str, pieces: &[(u64, u32)], expected: impl Into<Vec<u8>>) {
        let expected = expected.into();
        let len: u32 = pieces.iter().map(|(_, len)| len).sum();
        assert_eq!(expected.len(), len as usize, "{name}");
        for (at, len) in pieces {
            self.asm.show(*at, *len);
        }
        self.records.push(Record {
            name: name.into(),
            expected,
            seen: vec![],
        });
    }

    /// What the guest prints here by other means.
    pub fn prints(&mut self, name: &str, text: &[u8]) {
        self.records.push(Record {
            name: name.into(),
            expected: text.into(),
            seen: vec![],
        });
    }

    /// Removes the last record: the guest ends before it.
    pub fn forget_last(&mut self) {
        self.records.pop();
    }

    /// Runs to a soft-off. `None`, with a note, if no guest can run.
    pub fn run(self, test: &str, args: &[&str]) -> Option<Result<Vec<Record>, String>> {
        let mut asm = self.asm.clone();
        asm.power_off();
        let ended = Vm::new(test, &asm)?.args(args).run();
        Some(self.judge(0, &ended))
    }

    /// What the guest showed in a run that should end with a code. Another end is an error.
    pub fn judge(mut self, code: i32, ended: &Ended) -> Result<Vec<Record>, String> {
        let mut rest = ended.stdout.as_slice();
        for record in &mut self.records {
            let (seen, after) = rest.split_at(record.expected.len().min(rest.len()));
            record.seen = seen.into();
            rest = after;
        }
        if ended.is_code(code) && rest.is_empty() {
            return Ok(self.records);
        }
        let broken = self.records.iter().find(|r| r.seen != r.expected);
        Err(format!(
            "ended early or said more, first difference in {broken:x?}, then {rest:x?}: {ended:?}"
        ))
    }

    /// Faults on RDMSR, WRMSR and `out imm8, al` are counted and skipped. Others end the run as a panic.
    pub fn count_faults(&mut self) {
        self.handle(vec![]);
    }

    /// The same, with handlers for other vectors.
    pub fn handle(&mut self, mut handlers: Vec<(u8, Asm)>) {
        handlers.extend([6, 8, 14].map(|vector| (vector, guest(end_by_fault))));
        handlers.push((13, skip_instruction()));
        self.asm.idt(&handlers);
    }

    /// A GDT with 32-bit and user segments, a TSS with a stack for faults, and memory that user code may use.
    pub fn allow_user_code(&mut self) {
        let task = 0x8900_0000_0088 | (TSS & 0xff_ffff) << 16;
        let gdt: [u64; 9] = [
            0,
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            task,
            0,
        ];
        let asm = &mut self.asm;
        asm.place(&gdt.map(u64::to_le_bytes).concat(), GDT);
        asm.store(GDTR, (GDT as u32) << 16 | (size_of_val(&gdt) as u32 - 1));
        asm.store(GDTR + 4, GDT as u32 >> 16);
        asm.rdi(GDTR).raw(&[0x0f, 0x01, 0x17]); // lgdt [rdi]
        // RSP0, and the end of an I/O bitmap.
        asm.store(TSS + 4, FAULT_STACK as u32)
            .store(TSS + 0x88, 0xff);
        asm.raw(&[0x66, 0xb8, TASK, 0, 0x0f, 0x00, 0xd8]); // mov ax, TASK; ltr ax
        let tables = layout::BOOT_PAGE_TABLES;
        let [pdpt, directory] = [1, 2].map(|n| tables + n * PAGE_SIZE);
        asm.store(tables, pdpt as u32 | 7);
        asm.store(pdpt, directory as u32 | 7);
        for page in 0..TOP / (2 * MIB) {
            asm.store(directory + page * 8, (page * 2 * MIB) as u32 | 0x87);
        }
        asm.raw(&[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8]); // mov rax, cr3; mov cr3, rax
    }

    /// Code at CPL 3, with or without access to ports up to 0xff. The TSS's I/O bitmap decides, since software KVM
    /// doesn't support IOPL.
    pub fn user(&mut self, may_use_ports: bool, body: impl FnOnce(&mut Asm)) {
        let bitmap = if may_use_ports {
            0x68_0000
        } else {
            0xffff_0000
        };
        self.asm.store(TSS + 0x64, bitmap);
        let mut body = guest(body);
        body.raw(&[0xf4]);
        let enter = guest(|asm| {
            asm.raw(&[0x48, 0x89, 0x04, 0x25]).raw(&low(BACK)); // mov [BACK], rax
            asm.raw(&[0x6a, USER_DATA, 0x68]).raw(&low(USER_STACK));
            asm.raw(&[0x6a, 2, 0x6a, USER_CODE]); // RFLAGS, CS
            asm.raw(&[0x48, 0x8d, 0x05, 3, 0, 0, 0]); // lea rax, [rip + 3]
            asm.raw(&[0x50, 0x48, 0xcf]); // push rax; iretq
        });
        // lea rax, [rip + the code below]
        let len = enter.code().len() + body.code().len();
        self.asm
            .raw(&[0x48, 0x8d, 0x05])
            .raw(&(len as u32).to_le_bytes());
        self.asm.raw(enter.code()).raw(body.code());
    }

    /// No fault so far.
    pub fn clear_faults(&mut self) {
        self.asm.store(FAULTS, 0);
    }

    /// Calls the stub at an address with these registers, and shows all registers afterwards.
    pub fn call_all(&mut self, name: &str, at: u64, before: &Registers, rax: u64) {
        call(&mut self.asm, at, before);
        self.show_call(name, before, rax);
    }

    /// Shows all registers after a call, which may only have changed RAX.
    pub fn show_call(&mut self, name: &str, before: &Registers, rax: u64) {
        let mut after = *before;
        after[RAX] = rax;
        let expected = after.map(u64::to_le_bytes).concat();
        self.show(name, &[(REGISTERS, 128)], expected);
    }

    /// Calls the stub at an address with a number, and shows RAX afterwards.
    pub fn call(&mut self, name: &str, at: u64, number: u64, rax: u64) {
        call(&mut self.asm, at, &registers(number));
        self.show(name, &[(REGISTERS, 8)], rax.to_le_bytes());
    }

    /// Runs instructions that may use RAX as a call's number, and shows RAX afterwards.
    pub fn try_raw(&mut self, name: &str, code: &[u8], number: u64, rax: u64) {
        self.asm.rax(number).raw(code);
        self.asm.raw(&[0x48, 0x89, 0x04, 0x25]).raw(&low(REGISTERS)); // mov [REGISTERS], rax
        self.show(name, &[(REGISTERS, 8)], rax.to_le_bytes());
    }
}

/// Calls an address with these registers and flags, and stores the registers afterwards.
pub fn call(asm: &mut Asm, at: u64, before: &Registers) {
    asm.store(TARGET, at as u32);
    asm.store(TARGET + 4, (at >> 32) as u32);
    let flags = (before[RSP] as u32).to_le_bytes();
    asm.raw(&[0x68]).raw(&flags).raw(&[0x9d]); // push flags; popfq
    set_registers(asm, before);
    asm.raw(&[0xff, 0x14, 0x25]).raw(&low(TARGET)); // call [TARGET]
    store_registers(asm);
}

/// `mov register, value` for all but RSP.
pub fn set_registers(asm: &mut Asm, values: &Registers) {
    for number in (0..16).filter(|number| *number != RSP) {
        let [high, low] = [number as u8 >> 3, number as u8 & 7];
        asm.raw(&[0x48 | high, 0xb8 | low]);
        asm.raw(&values[number].to_le_bytes());
    }
}

/// `mov [REGISTERS + …], register`, and RFLAGS in RSP's place.
pub fn store_registers(asm: &mut Asm) {
    for number in (0..16).filter(|number| *number != RSP) {
        let [high, register] = [number as u8 >> 3, number as u8 & 7];
        asm.raw(&[0x48 | high << 2, 0x89, 0x04 | register << 3, 0x25]);
        asm.raw(&low(REGISTERS + 8 * number as u64));
    }
    // pushfq; pop [REGISTERS + …]
    asm.raw(&[0x9c, 0x8f, 0x04, 0x25])
        .raw(&low(REGISTERS + 8 * RSP as u64));
}

/// An address as an instruction's displacement.
pub fn low(at: u64) -> [u8; 4] {
    u32::try_from(at).unwrap().to_le_bytes()
}

/// The handler of an unexpected fault: shows its frame.
fn end_by_fault(asm: &mut Asm) {
    asm.print("\nfault, frame:");
    asm.raw(&[0x48, 0x89, 0xe6]); // mov rsi, rsp
    asm.ecx(48)
        .port(layout::SERIAL)
        .raw(&[0xac, 0xee, 0xe2, 0xfc]);
    asm.out(layout::PVPANIC, 1).halt();
}

/// Returns to the code after the entry of user code: mov rsp, stack; jmp [BACK]
fn leave_user_code(asm: &mut Asm) {
    asm.raw(&[0x48, 0xc7, 0xc4]).raw(&low(layout::BOOT_STACK));
    asm.raw(&[0xff, 0x24, 0x25]).raw(&low(BACK));
}

/// The handler of #GP, which skips two bytes. For user code, HLT is the way back.
fn skip_instruction() -> Asm {
    guest(|asm| {
        asm.raw(&[0x50, 0x48, 0x8b, 0x44, 0x24, 0x10]); // push rax; mov rax, [rsp + 16] (RIP)
        asm.raw(&[0x0f, 0xb7, 0x00]); // movzx eax, word [rax]
        asm.compare_eax(0x300f).if_different(|asm| {
            asm.compare_eax(0x320f).if_different(|asm| {
                asm.compare_al(0xf4).if_equal(leave_user_code);
                asm.compare_al(0xe6).if_different(end_by_fault);
            });
        });
        asm.raw(&[0x8b, 0x44, 0x24, 0x08]); // mov eax, [rsp + 8] (error code)
        asm.raw(&[0x88, 0x04, 0x25]).raw(&low(FAULTS + 1)); // mov [FAULTS + 1], al
        asm.raw(&[0xfe, 0x04, 0x25]).raw(&low(FAULTS)); // inc byte [FAULTS]
        asm.raw(&[0x48, 0x83, 0x44, 0x24, 0x10, 0x02]); // add qword [rsp + 16], 2
        asm.raw(&[0x58, 0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf]); // pop rax; add rsp, 8; iretq
    })
}
