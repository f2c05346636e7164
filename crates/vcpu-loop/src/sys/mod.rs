// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All of this crate's `unsafe`: the run page of a vCPU that its kicks share with KVM, and system calls that no crate
//! wraps safely.
//!
//! Each block says why it is sound. The rest of the crate denies `unsafe`, and this module uses nothing of it.

#![allow(unsafe_code)]

#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
pub(crate) mod calls;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
pub(crate) mod run_page;
pub(crate) mod signal;
