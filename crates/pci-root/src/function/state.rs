// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A function's saved state.

use super::Function;
use crate::config::ConfigStateError;
use crate::msix::{MsixState, MsixStateError};
use crate::sync::lock;

/// The saved state of a function: plain, untrusted data. It is checked before it is applied.
///
/// The device saves the state behind its BARs and live capabilities.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FunctionState {
    /// The 256 bytes of configuration space, without MSI-X Enable and Function Mask, which are in `msix`.
    #[cfg_attr(feature = "serde", serde(with = "crate::hex"))]
    pub config: Vec<u8>,
    /// MSI-X's state, if the function has MSI-X.
    pub msix: Option<MsixState>,
}

/// Why a function's state is refused.
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
    /// The state as plain data. The guest must not run.
    pub fn save(&self) -> FunctionState {
        let config = lock(&self.config).save();
        let vectors = self.vectors.as_ref();
        let msix = vectors.map(|vectors| vectors.msix.save());
        FunctionState { config, msix }
    }

    /// Checks that a state fits.
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

    /// Restores a state. The guest must not run. Returns whether BARs are now decoded at other addresses, like
    /// [`write_config`](Self::write_config).
    ///
    /// # Errors
    /// The state doesn't fit; nothing has changed then.
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
