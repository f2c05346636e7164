// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The root's saved state.

use super::PciRoot;
use crate::address::Address;
use crate::function::{FunctionState, FunctionStateError};

/// The saved state of a root's function.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedFunction {
    /// Its address, as [`Address::bits`].
    pub address: u16,
    /// Its state.
    pub state: FunctionState,
}

/// The saved state of a root: plain, untrusted data. [`PciRoot::restore`] checks it before it changes anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RootState {
    /// The version of this format: [`RootState::VERSION`].
    pub version: u32,
    /// The functions, in ascending order of their addresses.
    pub functions: Vec<SavedFunction>,
}

impl RootState {
    /// The version that is written, and the newest that is read.
    pub const VERSION: u32 = 1;
}

/// Why a root's state is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RootStateError {
    /// Its version is unknown.
    #[error(
        "the state of the PCI root has version {found}, and only {} is known: use the program that saved it",
        RootState::VERSION
    )]
    Version {
        /// The version.
        found: u32,
    },
    /// Its list of functions differs.
    #[error(
        "PCI function {address} is only in one of state and machine: give the machine the devices that it had when it \
         was saved"
    )]
    Functions {
        /// The first address that differs.
        address: Address,
    },
    /// A function's state doesn't fit.
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
    /// All functions as plain data. The guest must not run.
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

    /// Restores a state. The guest must not run. No message is sent. Devices whose BARs have moved are told.
    ///
    /// # Errors
    /// The state doesn't fit; nothing has changed then.
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
        let mine: Vec<_> = self.functions().collect();
        let pairs = || functions.iter().zip(&mine);
        for (saved, (address, function)) in pairs() {
            let address = *address;
            function
                .check(&saved.state)
                .map_err(|error| RootStateError::Function { address, error })?;
        }
        for (saved, (address, function)) in pairs() {
            let address = *address;
            let moved = function
                .restore(&saved.state)
                .map_err(|error| RootStateError::Function { address, error })?;
            if moved {
                self.moved(address, function);
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
