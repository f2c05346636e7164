// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The example's low-level code: entry, the handler of #GP, ports.
//!
//! The entry follows Linux's 64-bit boot protocol: long mode, identity-mapped memory, interrupts off.

use core::arch::{asm, global_asm};
use core::fmt;

global_asm!(
    ".pushsection .text.start, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "cli",
    "lea rsp, [rip + {stack} + {stack_size}]",
    // The compiler may use SSE registers.
    "mov rax, cr0",
    "and eax, ~4", // EM
    "or eax, 2",   // MP
    "mov cr0, rax",
    "mov rax, cr4",
    "or eax, 0x600", // OSFXSR, OSXMMEXCPT
    "mov cr4, rax",
    // The gate of vector 13: an interrupt gate of this code segment.
    "lea rax, [rip + general_protection]",
    "lea rdi, [rip + {idt}]",
    "lea rsi, [rdi + 13 * 16]",
    "mov word ptr [rsi], ax",
    "mov word ptr [rsi + 2], cs",
    "mov word ptr [rsi + 4], 0x8e00",
    "shr rax, 16",
    "mov word ptr [rsi + 6], ax",
    "shr rax, 16",
    "mov dword ptr [rsi + 8], eax",
    "push rdi",
    "sub rsp, 8",
    "mov word ptr [rsp + 6], {idt_size} - 1",
    "lidt [rsp + 6]",
    "add rsp, 16",
    "call guest_main",
    // On the stack: error code, RIP, CS, RFLAGS, RSP, SS.
    "general_protection:",
    "push rax",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "mov rdi, [rsp + 80]",
    "sub rsp, 8", // the ABI's alignment
    "call guest_general_protection",
    "add rsp, 8",
    "test rax, rax",
    "jz 2f",
    "mov [rsp + 80], rax",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rax",
    "add rsp, 8",
    "iretq",
    // Unexpected: a triple fault, which the VMM reports.
    "2: ud2",
    ".popsection",
    stack = sym STACK,
    stack_size = const STACK_SIZE,
    idt = sym IDT,
    idt_size = const IDT_SIZE,
);

const STACK_SIZE: usize = 65536;
const IDT_SIZE: usize = 14 * 16;

#[repr(C, align(16))]
struct Bytes<const N: usize>([u8; N]);

static mut STACK: Bytes<STACK_SIZE> = Bytes([0; STACK_SIZE]);
static mut IDT: Bytes<IDT_SIZE> = Bytes([0; IDT_SIZE]);

// The functions that the compiler expects from a C library.
global_asm!(
    ".globl memcpy, memmove, memset, memcmp, bcmp",
    "memcpy:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    "memmove:",
    "mov rax, rdi",
    "mov rcx, rdx",
    "mov r8, rdi",
    "sub r8, rsi",
    "cmp r8, rdx", // the destination starts within the source
    "jb 2f",
    "rep movsb",
    "ret",
    "2: lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "memset:",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    "memcmp:",
    "bcmp:",
    "xor eax, eax",
    "xor ecx, ecx",
    "2: cmp rcx, rdx",
    "je 3f",
    "movzx eax, byte ptr [rdi + rcx]",
    "movzx r8d, byte ptr [rsi + rcx]",
    "inc rcx",
    "sub eax, r8d",
    "jz 2b",
    "3: ret",
);

const COM1: u16 = 0x3f8;
const DEBUG_EXIT: u16 = 0xf4;

fn outb(port: u16, value: u8) {
    // SAFETY: this file uses only ports of devices that access no memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

fn inb(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as in `outb`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}

/// COM1, by polling.
#[derive(Clone, Copy, Debug)]
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while inb(COM1 + 5) & 0x20 == 0 {}
            outb(COM1, byte);
        }
        Ok(())
    }
}

/// Ends the machine with 2 * `value` + 1, if it has the debug-exit device.
pub fn end_by_port(value: u8) {
    outb(DEBUG_EXIT, value);
}

/// Halts for ever.
pub fn halt() -> ! {
    loop {
        // SAFETY: the instructions access no memory.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}
