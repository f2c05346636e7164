// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entropy device (`--rng`).

use virtio_models::entropy::Entropy;

use super::Model;
use crate::config::VmSpec;

pub(super) fn models(spec: &VmSpec) -> Vec<Model> {
    let model = || Model::new("rng", |_| Ok(Box::new(Entropy::new())));
    spec.rng.then(model).into_iter().collect()
}
