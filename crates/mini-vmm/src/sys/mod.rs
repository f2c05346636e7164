// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! System calls that no crate wraps safely.
//!
//! This module has all of mini-vmm's `unsafe`. Each block says why it is sound; the rest of the crate denies it.

pub(crate) mod allocator;
pub(crate) mod child;
pub(crate) mod demo_guest;
pub(crate) mod eventfd;
pub(crate) mod give_back;
pub(crate) mod huge_pages;
pub(crate) mod mapped_vm;
pub(crate) mod terminal;
pub(crate) mod threads;
pub(crate) mod uffd;
pub(crate) mod vsock;
pub(crate) mod written;
pub(crate) mod xen;
pub(crate) mod zeroed;
