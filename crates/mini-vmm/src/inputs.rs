// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The files that a machine is made from. Nothing may be written to them but by its disks.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::cloud_init;
use crate::config::VmSpec;

/// The input of `spec` that is the same file as `output`, by whatever path.
pub(crate) fn same_as(output: &Path, spec: &VmSpec) -> Option<PathBuf> {
    // A file that doesn't exist yet is no input.
    let output = fs::metadata(output).ok()?;
    let is_output = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|input| {
            let is_disk = input.is_file() || input.file_type().is_block_device();
            is_disk && (input.dev(), input.ino()) == (output.dev(), output.ino())
        })
    };
    let disks = spec.disk.iter().map(|disk| disk.path.clone());
    let seeds = spec
        .cloud_init
        .iter()
        .flat_map(|dir| cloud_init::files(dir));
    let images = [Some(spec.kernel.clone()), spec.initrd.clone()];
    let mut inputs = images.into_iter().flatten().chain(disks).chain(seeds);
    inputs.find(is_output)
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
