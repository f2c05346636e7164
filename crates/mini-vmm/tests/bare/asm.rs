// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An assembler for guests of a few dozen instructions. It has only what they need, in structured form.
//!
//! Encodings are those of the Intel SDM, volume 2. RAX, RCX, RDX, RSI and RDI are scratch registers. With addresses
//! below 4 GiB, the code is also valid 32-bit code, except where it names a 64-bit register or an IDT.

use mini_vmm::layout;

/// Where guests are loaded. They start there in 64-bit mode.
pub const AT: u64 = 16 * layout::MIB;

/// Where the other processors start.
pub const AP_CODE: u64 = 0x3_0000;
/// Where [`Asm::idt`] puts the IDT.
const IDT: u64 = 0x6_0000;
/// The code segment at the guest's start.
const CODE_SELECTOR: u32 = 0x10;
/// The local APIC's spurious vector register, which also enables it.
const LAPIC_SPURIOUS: u64 = layout::LAPIC + 0xf0;
/// The local APIC's interrupt command register, lower half.
const LAPIC_COMMAND: u64 = layout::LAPIC + 0x300;

/// Guest code. 64-bit, unless only 32-bit forms are used.
#[derive(Clone, Debug, Default)]
pub struct Asm {
    code: Vec<u8>,
}

impl Asm {
    pub fn new() -> Self {
        Asm::default()
    }

    pub fn code(&self) -> &[u8] {
        &self.code
    }

    /// Appends bytes.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.code.extend(bytes);
        self
    }

    /// `mov rax, value`
    pub fn rax(&mut self, value: u64) -> &mut Self {
        self.raw(&[0x48, 0xb8]).raw(&value.to_le_bytes())
    }

    /// `mov ecx, value`
    pub fn ecx(&mut self, value: u32) -> &mut Self {
        self.raw(&[0xb9]).raw(&value.to_le_bytes())
    }

    /// `mov rdx, port; mov al, value; out dx, al`
    pub fn out(&mut self, port: u16, value: u8) -> &mut Self {
        self.port(port).raw(&[0xb0, value, 0xee])
    }

    /// `mov dx, port; in al, dx`
    pub fn input(&mut self, port: u16) -> &mut Self {
        self.port(port).raw(&[0xec])
    }

    /// `mov edx, port`
    pub fn port(&mut self, port: u16) -> &mut Self {
        self.raw(&[0xba]).raw(&u32::from(port).to_le_bytes())
    }

    /// Writes a text to COM1.
    pub fn print(&mut self, text: &str) -> &mut Self {
        for byte in text.bytes() {
            self.out(layout::SERIAL, byte);
        }
        self
    }

    /// Sets the 32-bit word at a linear address: `mov rdi, at; mov dword [rdi], value`
    pub fn store(&mut self, at: u64, value: u32) -> &mut Self {
        self.rdi(at).raw(&[0xc7, 0x07]).raw(&value.to_le_bytes())
    }

    /// Loads EAX from a linear address: `mov rdi, at; mov eax, [rdi]`
    pub fn load(&mut self, at: u64) -> &mut Self {
        self.rdi(at).raw(&[0x8b, 0x07])
    }

    /// `mov rdi, value`. Uses the short form if it suffices, which in 32-bit code is `mov edi, value`.
    pub fn rdi(&mut self, value: u64) -> &mut Self {
        self.pointer(0xbf, value)
    }

    /// `mov rsi, value`, like [`Asm::rdi`].
    pub fn rsi(&mut self, value: u64) -> &mut Self {
        self.pointer(0xbe, value)
    }

    fn pointer(&mut self, opcode: u8, value: u64) -> &mut Self {
        match u32::try_from(value) {
            Ok(value) => self.raw(&[opcode]).raw(&value.to_le_bytes()),
            Err(_) => self.raw(&[0x48, opcode]).raw(&value.to_le_bytes()),
        }
    }

    /// Writes memory to COM1: `mov rsi, at; mov ecx, len; mov edx, COM1; lodsb; out dx, al; loop`
    pub fn show(&mut self, at: u64, len: u32) -> &mut Self {
        self.rsi(at).ecx(len).port(layout::SERIAL);
        self.raw(&[0xac, 0xee, 0xe2, 0xfc])
    }

    /// `cmp al, value`
    pub fn compare_al(&mut self, value: u8) -> &mut Self {
        self.raw(&[0x3c, value])
    }

    /// `cmp eax, value`
    pub fn compare_eax(&mut self, value: u32) -> &mut Self {
        self.raw(&[0x3d]).raw(&value.to_le_bytes())
    }

    /// `test al, bits`
    pub fn test_al(&mut self, bits: u8) -> &mut Self {
        self.raw(&[0xa8, bits])
    }

    /// `rdmsr` of an index; the upper half is in EDX
    pub fn rdmsr(&mut self, index: u32) -> &mut Self {
        self.ecx(index).raw(&[0x0f, 0x32])
    }

    /// `wrmsr` with a value
    pub fn wrmsr(&mut self, index: u32, value: u64) -> &mut Self {
        let [low, high] = [value as u32, (value >> 32) as u32];
        self.ecx(index);
        self.raw(&[0xb8]).raw(&low.to_le_bytes());
        self.raw(&[0xba]).raw(&high.to_le_bytes());
        self.raw(&[0x0f, 0x30])
    }

    /// Code that runs if the last comparison was equal, or the last test had no bit set.
    pub fn if_equal(&mut self, body: impl FnOnce(&mut Asm)) -> &mut Self {
        self.skip_by(&[0x0f, 0x85], body)
    }

    /// Code that runs if the last comparison was unequal, or the last test had a bit set.
    pub fn if_different(&mut self, body: impl FnOnce(&mut Asm)) -> &mut Self {
        self.skip_by(&[0x0f, 0x84], body)
    }

    /// An endless loop.
    pub fn forever(&mut self, body: impl FnOnce(&mut Asm)) -> &mut Self {
        self.repeat_by(&[0xe9], body)
    }

    /// A loop that ends when its last comparison is equal, or its last test has no bit set.
    pub fn until_equal(&mut self, body: impl FnOnce(&mut Asm)) -> &mut Self {
        self.repeat_by(&[0x0f, 0x85], body)
    }

    /// A loop of `count` rounds, in EBX: `mov ebx, count; …; dec ebx; jnz`
    pub fn times(&mut self, count: u32, body: impl FnOnce(&mut Asm)) -> &mut Self {
        self.raw(&[0xbb]).raw(&count.to_le_bytes());
        self.repeat_by(&[0x0f, 0x85], |asm| {
            body(asm);
            asm.raw(&[0xff, 0xcb]);
        })
    }

    /// Ends the run through the debug-exit port unless EAX is `value`.
    pub fn expect_eax(&mut self, value: u32, failure: u8) -> &mut Self {
        self.compare_eax(value)
            .if_different(|asm| asm.fail(failure))
    }

    /// Ends the run through the debug-exit port unless AL is `value`.
    pub fn expect_al(&mut self, value: u8, failure: u8) -> &mut Self {
        self.compare_al(value).if_different(|asm| asm.fail(failure))
    }

    /// Ends the run with exit code `(value << 1) | 1`.
    pub fn fail(&mut self, value: u8) {
        self.out(layout::DEBUG_EXIT, value).halt();
    }

    /// ACPI S5.
    pub fn power_off(&mut self) -> &mut Self {
        self.out(layout::ACPI_SLEEP_CONTROL, S5).halt()
    }

    /// Points the vectors of `handlers` to their code: an IDT with interrupt gates (SDM volume 3, section 6.14.1),
    /// followed by the handlers, one per page.
    pub fn idt(&mut self, handlers: &[(u8, Asm)]) -> &mut Self {
        for (page, (vector, handler)) in (1..).zip(handlers) {
            let at = IDT + page * layout::PAGE_SIZE;
            self.place(handler.code(), at);
            let gate = IDT + u64::from(*vector) * 16;
            self.store(gate, CODE_SELECTOR << 16 | at as u32 & 0xffff);
            self.store(gate + 4, at as u32 & 0xffff_0000 | 0x8e00);
        }
        self.store(IDT - 16, (IDT as u32) << 16 | 0xfff);
        self.store(IDT - 12, IDT as u32 >> 16);
        self.rdi(IDT - 16).raw(&[0x0f, 0x01, 0x1f]) // lidt [rdi]
    }

    /// Routes an IOAPIC pin to a vector of the boot processor, and enables its local APIC.
    pub fn route(&mut self, pin: u32, vector: u8) -> &mut Self {
        self.store(LAPIC_SPURIOUS, 0x1ff);
        self.store(layout::IOAPIC, 0x11 + 2 * pin);
        self.store(layout::IOAPIC + 0x10, 0);
        self.store(layout::IOAPIC, 0x10 + 2 * pin);
        self.store(layout::IOAPIC + 0x10, vector.into())
    }

    /// The end of an interrupt handler that does not return: `mov rsp, stack`, EOI, `sti; hlt; jmp`.
    pub fn wait_for_interrupts(&mut self) -> &mut Self {
        self.raw(&[0x48, 0xbc])
            .raw(&layout::BOOT_STACK.to_le_bytes());
        self.store(layout::LAPIC + 0xb0, 0);
        self.forever(|asm| {
            asm.raw(&[0xfb, 0xf4]);
        })
    }

    /// Sends INIT and SIPI to a processor, which starts in real mode at [`AP_CODE`].
    pub fn start_processor(&mut self, id: u8) -> &mut Self {
        for command in [0x4500, 0x4600 | (AP_CODE >> 12) as u32] {
            self.store(LAPIC_COMMAND + 0x10, u32::from(id) << 24);
            self.store(LAPIC_COMMAND, command);
        }
        self
    }

    /// `hlt`, repeated if something ends it.
    pub fn halt(&mut self) -> &mut Self {
        self.raw(&[0xf4, 0xeb, 0xfd])
    }

    /// An interrupt or exception without a handler: a triple fault.
    /// `lidt [rip + 2]; ud2; limit and base 0`
    pub fn triple_fault(&mut self) -> &mut Self {
        self.raw(&[0x0f, 0x01, 0x1d, 2, 0, 0, 0, 0x0f, 0x0b]);
        self.raw(&[0; 10])
    }

    fn skip_by(&mut self, jump: &[u8], body: impl FnOnce(&mut Asm)) -> &mut Self {
        self.raw(jump).raw(&[0; 4]);
        let from = self.code.len();
        body(self);
        let distance = (self.code.len() - from) as u32;
        self.code[from - 4..from].copy_from_slice(&distance.to_le_bytes());
        self
    }

    fn repeat_by(&mut self, jump: &[u8], body: impl FnOnce(&mut Asm)) -> &mut Self {
        let to = self.code.len() as i32;
        body(self);
        let from = (self.code.len() + jump.len() + 4) as i32;
        self.raw(jump).raw(&(to - from).to_le_bytes())
    }

    /// Copies code to an address: a `call` over it pushes its address, and `rep movsb` copies it.
    pub fn place(&mut self, code: &[u8], at: u64) -> &mut Self {
        let len = code.len() as u32;
        self.raw(&[0xe8]).raw(&len.to_le_bytes()).raw(code);
        self.raw(&[0x5e]).rdi(at); // pop rsi
        self.ecx(len).raw(&[0xf3, 0xa4])
    }
}

/// The value of the sleep control register for S5: the sleep type and SLP_EN.
pub const S5: u8 = layout::ACPI_S5_SLEEP_TYPE << 2 | 0x20;
