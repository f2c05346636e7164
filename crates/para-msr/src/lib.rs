// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The MSRs of a guest that user space handles: which accesses exit, which handler answers them, and what
//! is saved. It includes a complete handler for the 2007 MSR based hypercall API.
//!
//! | module or type | what it is |
//! |---|---|
//! | [`MsrDispatch`], [`MsrHandler`], [`Outcome`] | handlers by index, one table per vCPU, no lock or allocation per access |
//! | [`handlers`] | ready-made handlers: constants, shadows, per-vCPU values, logged #GP |
//! | [`filter`] | the rules of all parts of a VMM, compiled into the 16 ranges of KVM's MSR filter |
//! | [`profile`] | the MSRs that a Linux guest needs, as an allow-list |
//! | [`saved`] | saving and restoring KVM's MSRs, continuing after rejected ones |
//! | `para` (feature `para`) | a vCPU's registration with the 2007 API |
//! | `kvm` (feature `kvm`) | filters, exits and MSRs through `kvm-ioctls` |
//!
//! There is no `unsafe` in this crate.
//!
//! # Example
//!
//! One vCPU's MSRs, and the filter that makes exactly these exit. With feature `kvm`, call
//! `filter.install(&vm)` before creating the first vCPU.
//!
//! ```
//! use para_msr::filter::{Access, FilterDefault, MsrFilterBuilder};
//! use para_msr::handlers::{Constant, Shadow};
//! use para_msr::{MsrDispatchBuilder, Outcome};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let msrs = MsrDispatchBuilder::new()
//!         .insert(0xce, Constant::new(1 << 31))?
//!         .insert(0x4b56_4d08, Shadow::<1>::new(0x4b56_4d08, 1)?.reserved(!1))?;
//!     let filter = msrs
//!         .ranges()
//!         .fold(MsrFilterBuilder::new(FilterDefault::Allow), |filter, range| filter.deny(range, Access::Both))
//!         .compile()?;
//!     assert!(!filter.allows_read(0xce) && filter.allows_read(0x10));
//!
//!     // An exit for a read of `index`: `None` is #GP(0).
//!     let mut msrs = msrs.build();
//!     assert_eq!(msrs.read(0xce).or_gp(), Some(1 << 31));
//!     assert_eq!(msrs.read(0x606), Outcome::NotHandled);
//!     assert_eq!(msrs.read(0x606).or_gp(), None);
//!     Ok(())
//! }
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::too_many_lines))]

#[cfg(all(feature = "kvm", not(target_arch = "x86_64")))]
compile_error!(
    "the feature `kvm` of para-msr is for x86-64: switch it off with `default-features = false`"
);

mod dispatch;
pub mod filter;
mod handler;
pub mod handlers;
#[cfg(feature = "kvm")]
pub mod kvm;
#[cfg(feature = "para")]
pub mod para;
pub mod profile;
mod range;
pub mod saved;

pub use dispatch::{
    DispatchError, InsertError, MsrCount, MsrCounters, MsrDispatch, MsrDispatchBuilder,
};
pub use handler::{MsrHandler, Outcome};
#[cfg(feature = "para")]
pub use para::{ParaMsr, ParaMsrState, Registration};
pub use range::{InvertedRange, MsrRange};

#[cfg(all(doctest, feature = "kvm", feature = "para"))]
#[doc = include_str!("../README.md")]
mod readme {}
