// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The MSRs of a guest that user space answers for.

mod dispatch;
mod handler;
pub mod handlers;
pub mod para;
mod range;

pub use dispatch::{DispatchError, MsrCount, MsrCounters, MsrDispatch, MsrDispatchBuilder};
pub use handler::{MsrHandler, Outcome};
pub use para::{ParaMsr, ParaMsrState, Registration};
pub use range::{InvertedRange, MsrRange};
