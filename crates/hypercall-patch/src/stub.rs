// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The four bytes of the 2007 ABI.

use core::fmt;

use crate::{PioPort, Vendor};

const RET: u8 = 0xc3;
const INT3: u8 = 0xcc;
const OUT_IMM8_AL: u8 = 0xe6;

/// The instruction that calls the hypervisor. Both are three bytes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum HypercallInsn {
    /// `vmcall`, of VMX: `0f 01 c1` (Intel SDM volume 3, "VMX instruction reference").
    Vmcall,
    /// `vmmcall`, of SVM: `0f 01 d9` (AMD APM volume 3, "VMMCALL").
    Vmmcall,
}

impl HypercallInsn {
    /// The instruction's bytes.
    pub const fn bytes(self) -> [u8; 3] {
        match self {
            Self::Vmcall => [0x0f, 0x01, 0xc1],
            Self::Vmmcall => [0x0f, 0x01, 0xd9],
        }
    }

    /// The instruction that `bytes` start with.
    pub const fn identify(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x0f, 0x01, 0xc1, ..] => Some(Self::Vmcall),
            [0x0f, 0x01, 0xd9, ..] => Some(Self::Vmmcall),
            _ => None,
        }
    }
}

impl fmt::Display for HypercallInsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vmcall => "vmcall",
            Self::Vmmcall => "vmmcall",
        })
    }
}

/// The code written at the address that a guest registers: [`Stub::LEN`] bytes that call the hypervisor and return.
///
/// All stubs are position independent, are the same in 32-bit and 64-bit mode, and change no register but
/// the result. The ABI fixes the length: the 2007 host wrote a three-byte instruction and a `ret`, so guests
/// need not reserve more.
///
/// | stub | bytes | what happens |
/// |---|---|---|
/// | [`Stub::Vmx`] | `0f 01 c1 c3` | `vmcall; ret`: KVM answers it, or forwards it if configured to |
/// | [`Stub::Svm`] | `0f 01 d9 c3` | `vmmcall; ret`: the same |
/// | [`Stub::Pio`] | `e6 pp c3 cc` | `out pp, al; ret; int3`: `KVM_EXIT_IO`, so the VMM answers it |
///
/// With the port I/O stub, the VMM recognizes a call by its **port** and answers by writing RAX. It must not
/// go by RIP, which differs between KVM's exit paths. OUT is checked against IOPL and the TSS bitmap, not the
/// CPL, so a VMM that serves ring 0 only must check SS.DPL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Stub {
    /// `vmcall; ret`.
    Vmx,
    /// `vmmcall; ret`.
    Svm,
    /// `out port, al; ret; int3`.
    Pio(PioPort),
}

impl Stub {
    /// Length of every stub in bytes.
    pub const LEN: usize = 4;

    /// The stub with the native hypercall instruction of the host's vendor.
    pub const fn native(vendor: Vendor) -> Self {
        Self::of_insn(vendor.insn())
    }

    /// The stub with this hypercall instruction.
    pub const fn of_insn(insn: HypercallInsn) -> Self {
        match insn {
            HypercallInsn::Vmcall => Self::Vmx,
            HypercallInsn::Vmmcall => Self::Svm,
        }
    }

    /// The hypercall instruction in the stub. `None` for port I/O.
    pub const fn insn(self) -> Option<HypercallInsn> {
        match self {
            Self::Vmx => Some(HypercallInsn::Vmcall),
            Self::Svm => Some(HypercallInsn::Vmmcall),
            Self::Pio(_) => None,
        }
    }

    /// The port that the stub writes. `None` for a native stub.
    pub const fn port(self) -> Option<PioPort> {
        match self {
            Self::Pio(port) => Some(port),
            Self::Vmx | Self::Svm => None,
        }
    }

    /// Offset of the `ret` in bytes, where a vCPU continues after the call: 3 in a native stub, 2 in a port I/O stub.
    ///
    /// In a saved or paused guest, a stub may replace another only if both have the same offset. Otherwise a vCPU at
    /// the `ret` would continue in the middle of an instruction. So would guest code that was interrupted there: its
    /// return address is on a stack that the VMM can't find.
    ///
    /// # Examples
    ///
    /// ```
    /// use hypercall_patch::{PioPort, Stub};
    ///
    /// assert_eq!(Stub::Vmx.ret_offset(), Stub::Svm.ret_offset());
    /// assert_ne!(Stub::Vmx.ret_offset(), Stub::Pio(PioPort::DEFAULT).ret_offset());
    /// ```
    pub const fn ret_offset(self) -> usize {
        match self {
            Self::Vmx | Self::Svm => 3,
            Self::Pio(_) => 2,
        }
    }

    /// The bytes, in the order of their addresses.
    ///
    /// # Examples
    ///
    /// ```
    /// use hypercall_patch::{PioPort, Stub};
    ///
    /// assert_eq!(Stub::Vmx.bytes(), [0x0f, 0x01, 0xc1, 0xc3]);
    /// assert_eq!(Stub::Svm.bytes(), [0x0f, 0x01, 0xd9, 0xc3]);
    /// assert_eq!(Stub::Pio(PioPort::new(0x10)?).bytes(), [0xe6, 0x10, 0xc3, 0xcc]);
    /// # Ok::<(), hypercall_patch::ForbiddenPort>(())
    /// ```
    pub const fn bytes(self) -> [u8; Self::LEN] {
        match self {
            Self::Vmx => with_ret(HypercallInsn::Vmcall),
            Self::Svm => with_ret(HypercallInsn::Vmmcall),
            Self::Pio(port) => [OUT_IMM8_AL, port.get(), RET, INT3],
        }
    }

    /// The stub that `bytes` start with. A VMM uses it to patch a guest again that was restored on a
    /// host of another vendor. Bytes after the fourth don't matter.
    ///
    /// `None` if there are fewer than [`Stub::LEN`] bytes, or if [`Stub::bytes`] can't produce them (such as
    /// an `out` to a port that [`PioPort`] refuses).
    ///
    /// # Examples
    ///
    /// ```
    /// use hypercall_patch::{Stub, Vendor};
    ///
    /// let found = [0x0f, 0x01, 0xc1, 0xc3, 0xff, 0xc3]; // six bytes that the guest reserved
    /// let here = Stub::native(Vendor::Amd);
    /// let stale = Stub::identify(&found).is_some_and(|stub| stub.insn().is_some() && stub != here);
    /// assert!(stale);
    /// ```
    pub const fn identify(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [OUT_IMM8_AL, port, RET, INT3, ..] => match PioPort::new(*port) {
                Ok(port) => Some(Self::Pio(port)),
                Err(_) => None,
            },
            [_, _, _, RET, ..] => match HypercallInsn::identify(bytes) {
                Some(insn) => Some(Self::of_insn(insn)),
                None => None,
            },
            _ => None,
        }
    }
}

const fn with_ret(insn: HypercallInsn) -> [u8; Stub::LEN] {
    let [a, b, c] = insn.bytes();
    [a, b, c, RET]
}

impl fmt::Display for Stub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vmx => f.write_str("vmcall; ret"),
            Self::Svm => f.write_str("vmmcall; ret"),
            Self::Pio(port) => write!(f, "out {port}, al; ret; int3"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::string::ToString;

    use super::*;

    #[test]
    fn r9_native_stubs_are_the_four_bytes_of_2007() {
        assert_eq!(Stub::Vmx.bytes(), [0x0f, 0x01, 0xc1, 0xc3]);
        assert_eq!(Stub::Svm.bytes(), [0x0f, 0x01, 0xd9, 0xc3]);
        assert_eq!(Stub::LEN, 4);
        for vendor in Vendor::ALL {
            let stub = Stub::native(vendor);
            assert_eq!(stub.insn(), Some(vendor.insn()));
            assert_eq!(stub.bytes()[..3], vendor.insn().bytes());
        }
    }

    #[test]
    fn r9_the_port_io_stub_fits_the_same_four_bytes() {
        for port in (0..=u8::MAX).filter_map(|port| PioPort::new(port).ok()) {
            assert_eq!(Stub::Pio(port).bytes(), [0xe6, port.get(), 0xc3, 0xcc]);
            assert_eq!(Stub::Pio(port).port(), Some(port));
            assert_eq!(Stub::Pio(port).insn(), None);
        }
    }

    #[test]
    fn a_stub_is_identified_whatever_follows_it() {
        for stub in [Stub::Vmx, Stub::Svm, Stub::Pio(PioPort::DEFAULT)] {
            let mut bytes = [0xff; 6];
            bytes[..4].copy_from_slice(&stub.bytes());
            assert_eq!(Stub::identify(&bytes), Some(stub));
            assert_eq!(Stub::identify(&bytes[..4]), Some(stub));
            for short in 0..4 {
                assert_eq!(Stub::identify(&bytes[..short]), None);
            }
        }
    }

    #[test]
    fn what_no_host_writes_is_no_stub() {
        let others: [&[u8]; 7] = [
            &[0x0f, 0x01, 0xc1, 0x90],       // vmcall; nop
            &[0x0f, 0x01, 0xc2, 0xc3],       // vmlaunch; ret
            &[0xe6, 0xf5, 0xc3, 0x90],       // the pad is int3
            &[0xe6, 0x80, 0xc3, 0xcc],       // a forbidden port
            &[0xe7, 0xf5, 0xc3, 0xcc],       // out to the same port, but four bytes wide
            &[0xb8, 0xda, 0xff, 0xff, 0xff], // mov eax, -38
            &[0; 4],
        ];
        for bytes in others {
            assert_eq!(Stub::identify(bytes), None, "{bytes:02x?}");
        }
    }

    #[test]
    fn stubs_read_as_assembly() {
        assert_eq!(Stub::Vmx.to_string(), "vmcall; ret");
        assert_eq!(Stub::Svm.to_string(), "vmmcall; ret");
        assert_eq!(
            Stub::Pio(PioPort::DEFAULT).to_string(),
            "out 0xf5, al; ret; int3"
        );
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_forbidden_port_is_refused_when_it_is_deserialized() {
        let stub = Stub::Pio(PioPort::DEFAULT);
        let json = serde_json::to_string(&stub).unwrap();
        assert_eq!(json, r#"{"pio":245}"#);
        assert_eq!(serde_json::from_str::<Stub>(&json).unwrap(), stub);
        let error = serde_json::from_str::<Stub>(r#"{"pio":128}"#).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("port 0x80 can't carry hypercalls"),
            "{error}"
        );
        assert_eq!(serde_json::to_string(&Vendor::Hygon).unwrap(), r#""hygon""#);
    }
}
