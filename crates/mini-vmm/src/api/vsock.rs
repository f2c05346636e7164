// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The socket device, as Firecracker describes it.

use serde_json::{Value, json};

use super::fields::{Fields, wrong};
use super::http::Fault;
use crate::config::{Error, VmSpec, VsockError, VsockSpec};

/// The machine `spec` with the device in the body of `PUT /vsock`. There is one device, so its name means nothing.
pub(super) fn put(spec: &VmSpec, mut fields: Fields) -> Result<VmSpec, Fault> {
    let cid = fields.number("guest_cid")?;
    let socket = fields.path("uds_path")?;
    fields.text("vsock_id")?;
    fields.finish()?;
    let cid = Fields::required("guest_cid", cid)?;
    let socket = Fields::required("uds_path", socket)?;
    // Any larger number is as wrong.
    let cid = u32::try_from(cid).unwrap_or(u32::MAX);
    let spec = VmSpec {
        vsock: Some(VsockSpec::new(cid, socket)),
        ..spec.clone()
    };
    spec.check_vsock().map_err(|error| {
        let field = match error {
            Error::Vsock(VsockError::Cid { .. }) => "guest_cid",
            _ => "uds_path",
        };
        wrong(field, error)
    })?;
    Ok(spec)
}

/// As in `GET /vm/config`.
pub(super) fn json(vsock: &VsockSpec) -> Value {
    json!({
        "guest_cid": vsock.cid,
        "uds_path": vsock.socket.to_string_lossy(),
    })
}
