// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The files that a machine is made from, and those that it writes. Nothing may be written to the former but by its
//! disks.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::cloud_init;
use crate::config::{PortTarget, SerialSpec, VmSpec};

/// The input of `spec` that is the same file as `output`, by whatever path.
pub(crate) fn same_as(output: &Path, spec: &VmSpec) -> Option<PathBuf> {
    let disks = spec.disk.iter().map(|disk| disk.path.clone());
    let shared = spec.shared_memory.iter().map(|memory| memory.path.clone());
    let seeds = spec
        .cloud_init
        .iter()
        .flat_map(|dir| cloud_init::files(dir));
    let images = [Some(spec.kernel.clone()), spec.initrd.clone()];
    let mut inputs = images
        .into_iter()
        .flatten()
        .chain(disks)
        .chain(seeds)
        .chain(shared);
    inputs.find(|input| is_overwritten(input, output))
}

/// The files that a machine writes to, other than its disks.
pub(crate) fn outputs(spec: &VmSpec) -> impl Iterator<Item = &PathBuf> {
    let outputs = [spec.metrics.as_ref(), spec.event_log.as_ref()];
    guest_outputs(spec).chain(outputs.into_iter().flatten())
}

/// The files that the guest's consoles and ports write to.
pub(crate) fn guest_outputs(spec: &VmSpec) -> impl Iterator<Item = &PathBuf> {
    let consoles = [&spec.serial, &spec.console].into_iter();
    let consoles = consoles.filter_map(|console| match console {
        SerialSpec::File(path) => Some(path),
        _ => None,
    });
    let ports = spec.console_port.iter();
    consoles.chain(ports.filter_map(|port| match &port.to {
        PortTarget::File(path) => Some(path),
        _ => None,
    }))
}

/// Whether what is written to `output` changes the file or block device `input`.
pub(crate) fn is_overwritten(input: &Path, output: &Path) -> bool {
    let holds_data = |input: Metadata| input.is_file() || input.file_type().is_block_device();
    // A file that doesn't exist yet is no input.
    fs::metadata(input).is_ok_and(holds_data) && identity(input) == identity(output)
}

/// What makes a file or block device the same by any path.
pub(crate) fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = fs::metadata(path).ok()?;
    match file.file_type().is_block_device() {
        true => Some((u64::MAX, file.rdev())),
        false => Some((file.dev(), file.ino())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_input_is_found_by_any_of_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
            fs::write(&path, name).unwrap();
            path
        };
        let json = serde_json::json!({
            "kernel": file("kernel"), "initrd": file("initrd"), "disk": [{"path": file("disk")}],
            "cloud-init": dir.path(),
        });
        file("user-data");
        let spec: VmSpec = serde_json::from_value(json).unwrap();
        for name in ["kernel", "initrd", "disk", "user-data"] {
            let path = dir.path().join(name);
            let link = dir.path().join(format!("{name}-link"));
            std::os::unix::fs::symlink(&path, &link).unwrap();
            assert_eq!(same_as(&path, &spec), Some(path.clone()));
            assert_eq!(same_as(&link, &spec), Some(path));
        }
        assert_eq!(same_as(&file("other"), &spec), None);
        assert_eq!(same_as(&dir.path().join("missing"), &spec), None);
    }
}
