// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A function's saved state.

use super::Function;
use crate::config::ConfigStateError;
use crate::msix::{MsixState, MsixStateError};
use crate::sync::lock;

/// A function as it was saved: plain data that anybody may have written. It is checked before it is applied.
///
/// What is behind the BARs, and in live capabilities, is the device's to save.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FunctionState {
    /// The 256 bytes of configuration space, without MSI-X Enable and Function Mask, which `msix` has.
    pub config: Vec<u8>,
    /// MSI-X, if the function has it.
    pub msix: Option<MsixState>,
}

/// Why a function's state can't be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FunctionStateError {
    /// Configuration space.
    #[error(transparent)]
    Config(#[from] ConfigStateError),
    /// MSI-X.
    #[error(transparent)]
    Msix(#[from] MsixStateError),
    /// Either the state or the function has MSI-X, but not both.
    #[error(
        "only one of state and device has MSI-X: restore the state into the machine that it was saved from"
    )]
    HasMsix,
}

impl Function {
    /// The state as plain data, while the guest doesn't run.
    pub fn save(&self) -> FunctionState {
        let config = lock(&self.config).save();
        let vectors = self.vectors.as_ref();
        let msix = vectors.map(|vectors| vectors.msix.save());
        FunctionState { config, msix }
    }

    /// Whether a state fits.
    ///
    /// # Errors
    /// See [`FunctionStateError`].
    pub fn check(&self, state: &FunctionState) -> Result<(), FunctionStateError> {
        let FunctionState { config, msix } = state;
        lock(&self.config).check(config)?;
        match (&self.vectors, msix) {
            (Some(vectors), Some(msix)) => Ok(vectors.msix.check(msix)?),
            (None, None) => Ok(()),
            _ => Err(FunctionStateError::HasMsix),
        }
    }

    /// Takes a state, while the guest doesn't run. Returns whether BARs are now decoded at other addresses, as
    /// [`write_config`](Self::write_config) does.
    ///
    /// # Errors
    /// The state doesn't fit; then nothing is changed.
    pub fn restore(&self, state: &FunctionState) -> Result<bool, FunctionStateError> {
        self.check(state)?;
        let FunctionState { config, msix } = state;
        let (restored, moved) = self.change(|own| own.restore(config));
        restored?;
        if let (Some(vectors), Some(msix)) = (&self.vectors, msix) {
            vectors.msix.restore(msix)?;
        }
        Ok(moved)
    }
}
