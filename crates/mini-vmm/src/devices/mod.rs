// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine's port devices.
//!
//! Each is one small module that implements [`vm_device::DevicePio`] behind its own lock, reports
//! how the run ends through an [`crate::outcome::OutcomeLatch`], and implements [`Suspend`].
//! All registers are one byte wide: an access of another width, of an offset without a register or
//! of a register's missing direction reads all ones and writes nothing.
//!
//! Devices are called on vCPU threads and never wait: they take their own lock, write an eventfd,
//! or append to a bounded queue.

mod acpi_pm;
mod cf9;
mod debug_exit;
mod i8042;
mod irq;
pub mod pic;
mod platform;
mod port;
mod pvpanic;
mod serial;
mod suspend;

pub use acpi_pm::{AcpiPm, AcpiPmState};
pub use cf9::{Cf9, Cf9State};
pub use debug_exit::DebugExit;
pub use i8042::I8042;
pub use irq::IrqLine;
pub use platform::{Platform, PlatformConfig, PlatformState, PortDevice};
pub use port::PortRange;
pub use pvpanic::Pvpanic;
pub use serial::{SerialDevice, SerialState};
pub use suspend::{RestoreError, Suspend};
