// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Hypercall register conventions as data, and the conversions between registers and calls.

use core::fmt;

/// The general registers that a hypercall convention can name.
///
/// 32-bit guests use the low halves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// RAX.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// RBP.
    pub rbp: u64,
    /// R8.
    pub r8: u64,
    /// R9.
    pub r9: u64,
    /// R10.
    pub r10: u64,
}

/// The name of one of [`Registers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Register {
    /// RAX.
    Rax,
    /// RBX.
    Rbx,
    /// RCX.
    Rcx,
    /// RDX.
    Rdx,
    /// RSI.
    Rsi,
    /// RDI.
    Rdi,
    /// RBP.
    Rbp,
    /// R8.
    R8,
    /// R9.
    R9,
    /// R10.
    R10,
}

impl Register {
    /// All registers, in the order of [`Registers`].
    pub const ALL: [Self; 10] = [
        Self::Rax,
        Self::Rbx,
        Self::Rcx,
        Self::Rdx,
        Self::Rsi,
        Self::Rdi,
        Self::Rbp,
        Self::R8,
        Self::R9,
        Self::R10,
    ];
}

impl Registers {
    /// The full 64 bits of a register.
    pub const fn get(&self, register: Register) -> u64 {
        match register {
            Register::Rax => self.rax,
            Register::Rbx => self.rbx,
            Register::Rcx => self.rcx,
            Register::Rdx => self.rdx,
            Register::Rsi => self.rsi,
            Register::Rdi => self.rdi,
            Register::Rbp => self.rbp,
            Register::R8 => self.r8,
            Register::R9 => self.r9,
            Register::R10 => self.r10,
        }
    }

    /// Replaces the full 64 bits of a register.
    pub const fn set(&mut self, register: Register, value: u64) {
        let slot = match register {
            Register::Rax => &mut self.rax,
            Register::Rbx => &mut self.rbx,
            Register::Rcx => &mut self.rcx,
            Register::Rdx => &mut self.rdx,
            Register::Rsi => &mut self.rsi,
            Register::Rdi => &mut self.rdi,
            Register::Rbp => &mut self.rbp,
            Register::R8 => &mut self.r8,
            Register::R9 => &mut self.r9,
            Register::R10 => &mut self.r10,
        };
        *slot = value;
    }
}

/// How wide the caller's registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 64-bit mode: all 64 bits count.
    Long,
    /// Any other mode: only the low 32 bits count. The high halves of inputs are ignored, and results clear them.
    Legacy,
}

impl Width {
    /// A caller's width from `EFER.LMA` and the L bit of its code segment, as today's KVM decides it.
    ///
    /// The code of 2007 looked at `EFER.LMA` alone, so it treated a caller in compatibility mode as
    /// 64-bit. To get that behaviour, pass `lma` for both.
    pub const fn of_caller(lma: bool, cs_l: bool) -> Self {
        if lma && cs_l {
            Self::Long
        } else {
            Self::Legacy
        }
    }

    /// Mask of the register bits that count.
    pub const fn mask(self) -> u64 {
        match self {
            Self::Long => u64::MAX,
            Self::Legacy => 0xffff_ffff,
        }
    }
}

/// A hypercall, independent of the registers that carried it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// The number.
    pub nr: u64,
    /// The arguments. Those that the convention doesn't have are 0; 32-bit ones are zero-extended.
    pub args: [u64; 6],
}

/// A register convention for hypercalls.
///
/// The registers don't tell which one a guest uses, so it is a parameter of the VM.
///
/// | convention | number | arguments | result |
/// |---|---|---|---|
/// | [`Para2007`](Self::Para2007), 64-bit | RAX | RDI RSI RDX RCX R8 R9 | RAX |
/// | `Para2007`, 32-bit | **EBX** | EAX ECX EDX ESI EDI EBP | EAX |
/// | [`Para2007Draft`](Self::Para2007Draft), 64-bit | RAX | RDI RSI RDX RCX R8 R9 | RAX |
/// | `Para2007Draft`, 32-bit | **EAX** | EBX ECX EDX ESI EDI EBP | EAX |
/// | [`Kvm`](Self::Kvm), both | RAX | RBX RCX RDX RSI | RAX |
/// | [`Xen`](Self::Xen), 64-bit | RAX | RDI RSI RDX R10 R8 R9 | RAX |
/// | `Xen`, 32-bit | EAX | EBX ECX EDX ESI EDI EBP | EAX |
///
/// A call changes no register but RAX. Results of 32-bit calls are truncated to 32 bits and
/// zero-extended, as KVM does with its own.
///
/// # Example
///
/// ```
/// use para_abi::{Call, Convention, KvmErrno, Registers, Width};
///
/// let mut registers = Registers { rax: 5, rbx: 0, rcx: 0x1_0000_0003, ..Registers::default() };
/// let call = Convention::Kvm.call(Width::Legacy, &registers);
/// assert_eq!(call, Call { nr: 5, args: [0, 3, 0, 0, 0, 0] });
///
/// Convention::Kvm.set_result(Width::Legacy, &mut registers, KvmErrno::KVM_ENOSYS.as_ret());
/// assert_eq!(registers.rax, 0xffff_fc18);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Convention {
    /// The 2007 ABI as Linux merged it. Source: "KVM: Add host hypercall support for vmx".
    Para2007,
    /// The 2007 ABI as used by the guests that were never merged. Its 32-bit registers differ.
    Para2007Draft,
    /// Today's KVM hypercalls. Source: Linux, `Documentation/virt/kvm/x86/hypercalls.rst`.
    Kvm,
    /// Xen's hypercalls, as KVM reports them with `KVM_EXIT_XEN`. Source: Xen,
    /// `xen/include/public/arch-x86/xen-x86_64.h` and `xen-x86_32.h`.
    Xen,
}

/// The registers that one convention uses at one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The call number.
    pub number: Register,
    /// The arguments in order: at most six, all different from each other and from `number`.
    pub arguments: &'static [Register],
    /// The result.
    pub result: Register,
    /// Mask of the bits that count in each register.
    pub mask: u64,
}

const PARA_LONG: &[Register] = &[
    Register::Rdi,
    Register::Rsi,
    Register::Rdx,
    Register::Rcx,
    Register::R8,
    Register::R9,
];
const PARA_MERGED_LEGACY: &[Register] = &[
    Register::Rax,
    Register::Rcx,
    Register::Rdx,
    Register::Rsi,
    Register::Rdi,
    Register::Rbp,
];
const SYSCALL_LEGACY: &[Register] = &[
    Register::Rbx,
    Register::Rcx,
    Register::Rdx,
    Register::Rsi,
    Register::Rdi,
    Register::Rbp,
];
const KVM_BOTH: &[Register] = &[Register::Rbx, Register::Rcx, Register::Rdx, Register::Rsi];
const XEN_LONG: &[Register] = &[
    Register::Rdi,
    Register::Rsi,
    Register::Rdx,
    Register::R10,
    Register::R8,
    Register::R9,
];

impl Convention {
    /// All conventions.
    pub const ALL: [Self; 4] = [Self::Para2007, Self::Para2007Draft, Self::Kvm, Self::Xen];

    /// The registers that this convention uses at `width`.
    ///
    /// ```
    /// use para_abi::{Convention, Register, Width};
    ///
    /// assert_eq!(Convention::Para2007.layout(Width::Legacy).number, Register::Rbx);
    /// assert_eq!(Convention::Xen.layout(Width::Long).arguments[3], Register::R10);
    /// ```
    pub const fn layout(self, width: Width) -> Layout {
        let (number, arguments) = match (self, width) {
            (Self::Para2007 | Self::Para2007Draft, Width::Long) => (Register::Rax, PARA_LONG),
            (Self::Para2007, Width::Legacy) => (Register::Rbx, PARA_MERGED_LEGACY),
            (Self::Para2007Draft | Self::Xen, Width::Legacy) => (Register::Rax, SYSCALL_LEGACY),
            (Self::Kvm, _) => (Register::Rax, KVM_BOTH),
            (Self::Xen, Width::Long) => (Register::Rax, XEN_LONG),
        };
        Layout {
            number,
            arguments,
            result: Register::Rax,
            mask: width.mask(),
        }
    }

    /// Decodes a call from the caller's registers. Any register values are valid.
    pub const fn call(self, width: Width, registers: &Registers) -> Call {
        let layout = self.layout(width);
        let mut call = Call {
            nr: registers.get(layout.number) & layout.mask,
            args: [0; 6],
        };
        let mut at = 0;
        while at < layout.arguments.len() {
            call.args[at] = registers.get(layout.arguments[at]) & layout.mask;
            at += 1;
        }
        call
    }

    /// Writes a call to the registers: the caller's side of [`call`](Self::call).
    ///
    /// Arguments that the convention doesn't have are dropped, and values are truncated to the
    /// width. Other registers keep their values.
    pub const fn set_call(self, width: Width, registers: &mut Registers, call: &Call) {
        let layout = self.layout(width);
        registers.set(layout.number, call.nr & layout.mask);
        let mut at = 0;
        while at < layout.arguments.len() {
            registers.set(layout.arguments[at], call.args[at] & layout.mask);
            at += 1;
        }
    }

    /// Writes a result to the caller's registers. Only RAX changes.
    ///
    /// A 32-bit caller gets the low 32 bits; the high half becomes 0.
    pub const fn set_result(self, width: Width, registers: &mut Registers, result: u64) {
        let layout = self.layout(width);
        registers.set(layout.result, result & layout.mask);
    }

    /// Reads the result from the caller's registers, zero-extended.
    pub const fn result(self, width: Width, registers: &Registers) -> u64 {
        let layout = self.layout(width);
        registers.get(layout.result) & layout.mask
    }

    /// The name used in configurations: `2007`, `2007-draft`, `kvm` or `xen`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Para2007 => "2007",
            Self::Para2007Draft => "2007-draft",
            Self::Kvm => "kvm",
            Self::Xen => "xen",
        }
    }

    /// The convention with that [`name`](Self::name).
    ///
    /// ```
    /// use para_abi::Convention;
    ///
    /// assert_eq!(Convention::from_name("2007"), Some(Convention::Para2007));
    /// assert_eq!(Convention::from_name("2008"), None);
    /// ```
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|convention| convention.name() == name)
    }
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
