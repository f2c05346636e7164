// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Hypercall stubs and hypercall pages: which bytes, for which vendor, and how they get into guest memory.
//!
//! A guest that wants hypercalls without knowing whose processor it runs on hands the hypervisor a place, and
//! the hypervisor writes the instruction there. KVM's MSR based hypercall API of 2007 does so with four
//! bytes, Xen and Hyper-V with a page. This crate holds the bytes of all three, checked against a
//! disassembler, and none of the policy: it knows no MSR dispatch, no KVM and no VMM.
//!
//! | item | is |
//! |---|---|
//! | [`Vendor`], [`HypercallInsn`] | whose processor it is, by CPUID leaf 0; which of VMCALL and VMMCALL it has |
//! | [`Stub`], [`PioPort`] | the four bytes of the 2007 ABI: native, or port I/O that a VMM can see |
//! | [`xen`], [`hyperv`] | their hypercall pages, byte for byte as KVM writes them, and the MSR values |
//! | `memory` (feature `vm-memory`) | one safe way to write a stub into guest memory |
//!
//! # Features
//!
//! `vm-memory` brings `memory`, `serde` serializes vendors, ports and stubs. Without them, as by default, the crate has
//! no dependency. It is `no_std`, and there is no `unsafe`.
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
//! // KVM answers VMCALL and VMMCALL itself. A call for the VMM goes through a port.
//! let stub = Stub::Pio(PioPort::DEFAULT);
//! assert_eq!(stub.bytes(), [0xe6, 0xf5, 0xc3, 0xcc]); // out 0xf5, al; ret; int3
//! assert_eq!(Stub::identify(&stub.bytes()), Some(stub));
//! # Ok::<(), hypercall_patch::UnknownVendor>(())
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

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

/// Size of a guest page in bytes, and of a hypercall page.
pub const PAGE_SIZE: usize = 4096;

/// The README's examples, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
