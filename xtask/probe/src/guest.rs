// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests of a few instructions, the same for every VMM except for how they end. The probe and xtask share this file.
//!
//! Encodings are those of the Intel SDM, volume 2.

/// The address and entry point of the code.
pub const ENTRY: u32 = 0x10_0000;
/// COM1's data register.
pub const SERIAL: u16 = 0x3f8;
/// The guest's first output there, which no measured VMM prints itself.
pub const SIGN: u8 = b'!';
/// COM1's scratch register, which has no effect.
pub const SCRATCH: u16 = 0x3ff;
/// An address in the hole below 4 GiB that has no device.
const NO_DEVICE: u32 = 0xdff0_0000;
/// The MSR of the 2007 hypercall API, which KVM does not have. User space gets its accesses if it asked for them.
pub const MSR: u32 = 0x8765_5678;
/// The port of mini-vmm's hypercalls.
pub const CALL_PORT: u16 = 0xf5;
/// mini-vmm's hypercall that does nothing.
const CALL_NOTHING: u32 = 0x4d56_0000;
/// The registered page, and the called function, with the stack below it.
const PAGE: u32 = 0x20_0000;
const FUNCTION: u32 = 0x20_2000;
/// Memory that a guest writes and reads.
const DATA: u32 = 0x40_0000;
/// ACPI's sleep control register of mini-vmm and Cloud Hypervisor, and the value for soft-off.
pub const ACPI_OFF: (u16, u8) = (0x600, 0x34);
/// The keyboard controller's command port, and the command that pulses the reset line.
pub const KEYBOARD_RESET: (u16, u8) = (0x64, 0xfe);

/// How a guest ends its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By ACPI soft-off.
    Acpi,
    /// By a reset through the keyboard controller, for VMMs that this ends.
    Keyboard,
}

impl End {
    /// The port and the value that end the machine.
    pub fn write(self) -> (u16, u8) {
        match self {
            End::Acpi => ACPI_OFF,
            End::Keyboard => KEYBOARD_RESET,
        }
    }
}

/// What a guest does before it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Nothing.
    Nothing,
    /// Prints a byte.
    Say,
    /// Prints a byte and halts for good, without interrupts.
    Idle,
    /// Writes this often to a register of the serial port.
    Port(u32),
    /// Writes this often to an address without a device.
    Mmio(u32),
    /// Registers for hypercalls this often, by writing an MSR.
    Msr(u32),
    /// Registers once, then makes this many hypercalls that do nothing.
    Hypercall(u32),
    /// Prints a byte and resets the machine.
    Reset,
    /// Prints a byte, over and over.
    Signs,
    /// Writes this many MiB. Then, over and over, reads each page of them and prints a byte.
    Reread(u32),
    /// Writes this many MiB. Then, over and over, writes to each page of them and prints a byte.
    Rewrite(u32),
}

/// Flat 32-bit protected mode code that does `work`, then ends.
pub fn code(work: Work, end: End) -> Vec<u8> {
    let mut code = Vec::new();
    match work {
        Work::Nothing => {}
        Work::Say => out(&mut code, SERIAL, SIGN),
        Work::Idle => {
            out(&mut code, SERIAL, SIGN);
            code.extend(HALT);
        }
        Work::Port(count) => {
            code.push(0xba); // mov edx, port
            code.extend(u32::from(SCRATCH).to_le_bytes());
            repeat(&mut code, count, &[0xee]); // out dx, al
        }
        Work::Mmio(count) => {
            code.push(0xbf); // mov edi, address
            code.extend(NO_DEVICE.to_le_bytes());
            repeat(&mut code, count, &[0x89, 0x07]); // mov [edi], eax
        }
        Work::Msr(count) => {
            prepare(&mut code);
            code.push(0xbe); // mov esi, count
            code.extend(count.to_le_bytes());
            code.extend([0x0f, 0x30, 0x4e, 0x75, 0xfb]); // wrmsr; dec esi; jnz -5
        }
        Work::Hypercall(count) => {
            prepare(&mut code);
            code.extend([0x0f, 0x30, 0xbf]); // wrmsr; mov edi, function
            code.extend(FUNCTION.to_le_bytes());
            let mut call = vec![0xb8]; // mov eax, number
            call.extend(CALL_NOTHING.to_le_bytes());
            call.extend([0xff, 0xd7]); // call edi
            repeat(&mut code, count, &call);
        }
        Work::Reset => {
            out(&mut code, SERIAL, SIGN);
            out(&mut code, KEYBOARD_RESET.0, KEYBOARD_RESET.1);
        }
        Work::Signs => {
            out(&mut code, SERIAL, SIGN);
            code.extend([0xeb, 0xfd]); // jmp -3, to the last out
        }
        Work::Reread(mib) => over_and_over(&mut code, mib, [0x8b, 0x1e]), // mov ebx, [esi]
        Work::Rewrite(mib) => over_and_over(&mut code, mib, [0x89, 0x36]), // mov [esi], esi
    }
    let (port, value) = end.write();
    out(&mut code, port, value);
    code.extend(HALT);
    code
}

/// Writes the page (version, size, function) and a function that calls by port, and loads the registers for WRMSR.
fn prepare(code: &mut Vec<u8>) {
    let stub = u32::from_le_bytes([0xe6, CALL_PORT as u8, 0xc3, 0xcc]); // out port, al; ret; int3
    for (at, value) in [
        (PAGE, 1),
        (PAGE + 8, 4096),
        (PAGE + 16, FUNCTION),
        (FUNCTION, stub),
    ] {
        code.extend([0xc7, 0x05]); // mov dword [at], value
        code.extend(at.to_le_bytes());
        code.extend(value.to_le_bytes());
    }
    for (register, value) in [(0xbc, FUNCTION), (0xb9, MSR), (0xb8, PAGE), (0xba, 0)] {
        code.push(register); // mov esp, ecx, eax, edx
        code.extend(u32::to_le_bytes(value));
    }
}

/// Writes this many MiB. Then, over and over, does `access` to each page of them, whose address is in ESI, and prints a byte.
fn over_and_over(code: &mut Vec<u8>, mib: u32, access: [u8; 2]) {
    fill(code, mib);
    let again = code.len();
    code.push(0xbe); // mov esi, address
    code.extend(DATA.to_le_bytes());
    let next = [0x81, 0xc6, 0, 0x10, 0, 0]; // add esi, 4096
    repeat(code, mib << 8, &[&access[..], &next[..]].concat());
    out(code, SERIAL, SIGN);
    let back = (again as i32) - (code.len() as i32) - 5;
    code.push(0xe9); // jmp
    code.extend(back.to_le_bytes());
}

/// Writes this many MiB: `mov edi, address; mov ecx, count; mov eax, value; rep stosd`.
fn fill(code: &mut Vec<u8>, mib: u32) {
    for (register, value) in [(0xbf, DATA), (0xb9, mib << 18), (0xb8, 0x5a5a_5a5a)] {
        code.push(register);
        code.extend(u32::to_le_bytes(value));
    }
    code.extend([0xf3, 0xab]);
}

/// `cli; hlt; jmp -4`
const HALT: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfc];

/// `mov edx, port; mov al, value; out dx, al`
fn out(code: &mut Vec<u8>, port: u16, value: u8) {
    code.push(0xba);
    code.extend(u32::from(port).to_le_bytes());
    code.extend([0xb0, value, 0xee]);
}

/// `mov ecx, count`, then `body; dec ecx; jnz`.
fn repeat(code: &mut Vec<u8>, count: u32, body: &[u8]) {
    code.push(0xb9);
    code.extend(count.to_le_bytes());
    code.extend(body);
    let back = body.len() as u8 + 3;
    code.extend([0x49, 0x75, back.wrapping_neg()]);
}
