// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that other processes serve: shared directories (`--share`), then others (`--vhost-user`).

use std::io;
use std::sync::Arc;

use virtio_models::vhost_user::{Backend, VhostUser};

use super::Model;
use crate::config::VmSpec;
use crate::devices::Backends;

pub(super) fn models(spec: &VmSpec) -> Vec<Model> {
    let shares = spec.share.iter().enumerate().map(|(number, share)| {
        let model = model(format!("share{number}"), move |backends| {
            backends.shares.get(number).map(|share| share.backend())
        });
        model.on_thread(share.iothread.clone())
    });
    let others = spec.vhost_user.iter().enumerate().map(|(number, device)| {
        let model = model(format!("vhost-user{number}"), move |backends| {
            backends.vhost_user.get(number)
        });
        model.on_thread(device.iothread.clone())
    });
    shares.chain(others).collect()
}

/// A device of this name, whose backend `find` finds.
fn model(
    id: String,
    find: impl Fn(&Backends) -> Option<&Arc<Backend>> + Send + Sync + 'static,
) -> Model {
    Model::new(id, move |parts| {
        let backend = find(parts.backends);
        let backend = backend.ok_or_else(|| io::Error::other("its backend is not connected"))?;
        Ok(Box::new(VhostUser::new(Arc::clone(backend))))
    })
}
