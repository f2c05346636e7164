// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entropy device (`--rng`).

use virtio_models::entropy::Entropy;
use virtio_models::rate::Limiter;

use super::Model;
use crate::config::VmSpec;

pub(super) fn models(spec: &VmSpec) -> Vec<Model> {
    let model = spec.rng.map(|rng| {
        Model::new("rng", move |_| {
            let limiter = Limiter::new(rng.limits())?;
            Ok(Box::new(Entropy::new().with_limiter(limiter)))
        })
    });
    model.into_iter().collect()
}
