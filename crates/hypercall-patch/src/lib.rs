// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Hypercall stubs and hypercall pages: the bytes for each processor vendor, and how to write them to guest memory.
//!
//! A guest that doesn't know its processor's vendor passes an address to the hypervisor, and the hypervisor
//! writes the hypercall instruction there. In KVM's MSR based hypercall API of 2007 that is four bytes, in
//! Xen and Hyper-V a page. This crate has the bytes for all three, checked with a disassembler. It has no
//! policy, no MSR dispatch, no KVM and no VMM.
//!
//! | item | what it is |
//! |---|---|
//! | [`Vendor`], [`HypercallInsn`] | the processor vendor from CPUID leaf 0; its instruction, VMCALL or VMMCALL |
//! | [`Stub`], [`PioPort`] | the four bytes of the 2007 ABI: the native instruction, or port I/O that reaches the VMM |
//! | [`xen`], [`hyperv`] | their hypercall pages, byte for byte as KVM writes them, and the MSR values |
//! | `memory` (feature `vm-memory`) | checks a site in guest memory and writes a stub there |
//!
//! # Features
//!
//! `vm-memory` adds `memory`; `serde` serializes vendors, ports and stubs. Neither is on by default, and without them
//! the crate has no dependencies. It is `no_std` and has no `unsafe`.
//!
//! # Example
//!
//! ```
//! use hypercall_patch::{PioPort, Stub, Vendor};
//!
//! // CPUID leaf 0 of the host: EBX, ECX, EDX.
//! let vendor = Vendor::from_leaf0(0x6874_7541, 0x444d_4163, 0x6974_6e65)?;
//! assert_eq!(vendor, Vendor::Amd);
//! assert_eq!(Stub::native(vendor).bytes(), [0x0f, 0x01, 0xd9, 0xc3]); // vmmcall; ret
//!
//! // KVM may answer VMCALL and VMMCALL itself. A port access always reaches the VMM.
//! let stub = Stub::Pio(PioPort::DEFAULT);
//! assert_eq!(stub.bytes(), [0xe6, 0xf5, 0xc3, 0xcc]); // out 0xf5, al; ret; int3
//! assert_eq!(Stub::identify(&stub.bytes()), Some(stub));
//! # Ok::<(), hypercall_patch::UnknownVendor>(())
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]
#![cfg_attr(not(test), deny(clippy::too_many_lines))]

pub mod hyperv;
#[cfg(feature = "vm-memory")]
pub mod memory;
mod pio;
mod stub;
mod vendor;
pub mod xen;

pub use pio::{ForbiddenPort, PioPort};
pub use stub::{HypercallInsn, Stub};
pub use vendor::{CpuidError, UnknownVendor, Vendor};

/// Size in bytes of a guest page and of a hypercall page.
pub const PAGE_SIZE: usize = 4096;

/// The README's examples, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
