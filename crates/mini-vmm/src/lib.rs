// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small KVM virtual machine monitor that boots stock Linux kernels.
//!
//! Data flows one way: a [`spec::VmSpec`] becomes a machine, the machine runs until there is an
//! [`outcome::Outcome`], and the outcome becomes the exit code. `unsafe` has one address: `sys/`.

pub mod acpi;
pub mod boot;
pub mod check;
pub mod cli;
pub mod config;
pub mod console;
pub mod control;
pub mod cpu;
pub mod demo;
pub mod devices;
pub mod hypercalls;
pub mod layout;
mod loading;
pub mod logging;
pub mod memory;
pub mod outcome;
pub mod para;
pub mod plan;
mod probe;
pub mod spec;
pub mod start_time;
mod supervisor;
mod sync;
mod sys;
mod text;

pub mod vcpu_io;
pub mod vcpu_state;
pub mod vm;
pub mod vm_state;
pub mod vmm;

pub use sys::allocator::share_heap;

/// The README's examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
