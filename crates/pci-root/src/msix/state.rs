// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The saved state.

use super::MAX_VECTORS;

/// A vector as it was saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VectorState {
    /// Where its message goes.
    pub address: u64,
    /// What its message is.
    pub data: u32,
    /// Whether the guest masked it.
    pub masked: bool,
    /// Whether its message waits for it to be unmasked.
    pub pending: bool,
}

/// MSI-X as it was saved: plain data that anybody may have written. [`Msix::restore`](super::Msix::restore) checks it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsixState {
    /// MSI-X Enable.
    pub enabled: bool,
    /// Function Mask.
    pub function_masked: bool,
    /// The table, in order.
    pub vectors: Vec<VectorState>,
}

/// Why a saved state can't be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MsixStateError {
    /// It is of another function.
    #[error(
        "the state has {found} MSI-X vectors and the device {expected}: restore it into the machine that it was \
         saved from"
    )]
    Vectors {
        /// How many vectors the state has.
        found: usize,
        /// How many the function has.
        expected: u16,
    },
    /// No guest can have written such an address.
    #[error(
        "MSI-X vector {vector} has the address {address:#x}, which is not a multiple of 4: the state is damaged"
    )]
    Address {
        /// The vector.
        vector: u16,
        /// Its address.
        address: u64,
    },
    /// Its message would have been sent.
    #[error("MSI-X vector {vector} is pending, but nothing masks it: the state is damaged")]
    Pending {
        /// The vector.
        vector: u16,
    },
}

impl MsixState {
    /// Whether a function with so many vectors can have this state.
    pub(super) fn check(&self, expected: u16) -> Result<(), MsixStateError> {
        debug_assert!(expected <= MAX_VECTORS);
        if self.vectors.len() != usize::from(expected) {
            let found = self.vectors.len();
            return Err(MsixStateError::Vectors { found, expected });
        }
        for (vector, state) in (0..).zip(&self.vectors) {
            let address = state.address;
            if address % 4 != 0 {
                return Err(MsixStateError::Address { vector, address });
            }
            let may_wait = self.enabled && (self.function_masked || state.masked);
            if state.pending && !may_wait {
                return Err(MsixStateError::Pending { vector });
            }
        }
        Ok(())
    }
}
