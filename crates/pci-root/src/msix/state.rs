// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! MSI-X's saved state.

use super::MAX_VECTORS;

/// The saved state of a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VectorState {
    /// The address of its message.
    pub address: u64,
    /// The data of its message.
    pub data: u32,
    /// Whether the guest masked it.
    pub masked: bool,
    /// Whether its message will be sent when it is unmasked.
    pub pending: bool,
}

/// The saved state of MSI-X: plain, untrusted data. [`Msix::restore`](super::Msix::restore) checks it.
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

/// Why a saved state is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MsixStateError {
    /// It belongs to another function.
    #[error(
        "the state has {found} MSI-X vectors and the device {expected}: restore it into the machine that it was \
         saved from"
    )]
    Vectors {
        /// The number of vectors in the state.
        found: usize,
        /// The number of vectors of the function.
        expected: u16,
    },
    /// A guest can't write this address.
    #[error(
        "MSI-X vector {vector} has the address {address:#x}, which is not a multiple of 4: the state is damaged"
    )]
    Address {
        /// The vector.
        vector: u16,
        /// Its address.
        address: u64,
    },
    /// It is pending, but not masked.
    #[error("MSI-X vector {vector} is pending, but nothing masks it: the state is damaged")]
    Pending {
        /// The vector.
        vector: u16,
    },
}

impl MsixState {
    /// Checks that a function with this many vectors can have this state.
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
