// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All of this crate's `unsafe`: a vCPU's run page, which kicks share with KVM, and system calls that no crate wraps
//! safely.
//!
//! The rest of the crate denies `unsafe`. This module uses nothing from it.

#![allow(unsafe_code)]

#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
pub(crate) mod calls;
#[cfg(all(feature = "kvm", target_arch = "x86_64"))]
pub(crate) mod run_page;
pub(crate) mod signal;
