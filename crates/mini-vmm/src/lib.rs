// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small KVM virtual machine monitor that boots stock Linux kernels.
//!
//! A [`config::VmSpec`] becomes a machine. The machine runs until there is an [`outcome::Outcome`], which becomes the
//! exit code. All `unsafe` code is in `sys/`.
#![cfg_attr(not(test), deny(clippy::too_many_lines))]

mod acpi;
pub mod api;
pub mod boot;
pub mod check;
pub mod cli;
pub mod cloud_init;
pub mod config;
pub mod console;
mod cpu;
pub mod ctl;
pub mod demo;
pub mod devices;
pub mod exec;
mod http_head;
pub mod hypercall;
mod inputs;
pub mod irq;
pub mod late;
pub mod layout;
pub mod logging;
pub mod machine;
pub mod memory;
pub mod mmds;
mod mptable;
pub mod outcome;
mod plan;
mod probe;
pub mod snapshot;
mod socket_file;
pub mod start_time;
mod sync;
mod sys;
pub mod telemetry;
mod text;
pub mod vmm;

pub use sys::allocator::share_heap;

/// Tests the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
