// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The root's saved state.

use super::PciRoot;
use crate::address::Address;
use crate::function::{FunctionState, FunctionStateError};

/// A function of a root as it was saved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedFunction {
    /// Where it is, as [`Address::bits`].
    pub address: u16,
    /// Its state.
    pub state: FunctionState,
}

/// A root as it was saved: plain data that anybody may have written. [`PciRoot::restore`] checks it before it changes
/// anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RootState {
    /// The form of this structure: [`RootState::VERSION`].
    pub version: u32,
    /// The functions, in ascending order of their addresses.
    pub functions: Vec<SavedFunction>,
}

impl RootState {
    /// The form that is written, and the newest that is read.
    pub const VERSION: u32 = 1;
}

/// Why a root's state can't be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RootStateError {
    /// Its form isn't known.
    #[error(
        "the state of the PCI root has version {found}, and only {} is known: use the program that saved it",
        RootState::VERSION
    )]
    Version {
        /// The version.
        found: u32,
    },
    /// It has other functions.
    #[error(
        "PCI function {address} is only in one of state and machine: give the machine the devices that it had when it \
         was saved"
    )]
    Functions {
        /// The first address that differs.
        address: Address,
    },
    /// A function's state.
    #[error("PCI function {address}: {error}")]
    Function {
        /// The function.
        address: Address,
        /// What is wrong.
        #[source]
        error: FunctionStateError,
    },
}

impl PciRoot {
    /// All functions as plain data, while the guest doesn't run.
    pub fn save(&self) -> RootState {
        let functions = self.functions().map(|(address, function)| SavedFunction {
            address: address.bits(),
            state: function.save(),
        });
        RootState {
            version: RootState::VERSION,
            functions: functions.collect(),
        }
    }

    /// Takes a state, while the guest doesn't run. No message is sent. Devices whose BARs have moved by it are told.
    ///
    /// # Errors
    /// The state doesn't fit; then nothing is changed.
    pub fn restore(&self, state: &RootState) -> Result<(), RootStateError> {
        let RootState { version, functions } = state;
        if *version != RootState::VERSION {
            return Err(RootStateError::Version { found: *version });
        }
        let saved = functions
            .iter()
            .map(|saved| Address::from_bits(saved.address));
        if let Some(address) = first_difference(saved, self.functions().map(|(address, _)| address))
        {
            return Err(RootStateError::Functions { address });
        }
        let pairs = || functions.iter().zip(&self.functions);
        for (saved, (address, function)) in pairs() {
            let address = *address;
            function
                .check(&saved.state)
                .map_err(|error| RootStateError::Function { address, error })?;
        }
        for (index, (saved, (address, function))) in pairs().enumerate() {
            let address = *address;
            let moved = function
                .restore(&saved.state)
                .map_err(|error| RootStateError::Function { address, error })?;
            if moved {
                self.moved(index);
            }
        }
        Ok(())
    }
}

/// The first address at which two lists differ.
fn first_difference(
    mut a: impl Iterator<Item = Address>,
    mut b: impl Iterator<Item = Address>,
) -> Option<Address> {
    loop {
        match (a.next(), b.next()) {
            (None, None) => return None,
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => return Some(a.min(b)),
            (Some(only), None) | (None, Some(only)) => return Some(only),
        }
    }
}
