// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The files of a machine.

use crate::boot::{self, Image, Step, Watch};
use crate::config::VmSpec;
use crate::devices::{BackendError, Backends};

/// The files that a machine boots from and that its devices use. They are opened once, and a reset uses the same files.
#[derive(Debug)]
pub struct Images {
    /// The kernel.
    pub kernel: Image,
    /// The initial RAM disk.
    pub initrd: Option<Image>,
    /// What the devices use.
    pub backends: Backends,
}

/// Why a machine's files can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The kernel or the initrd can't be used.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// A device can't be had.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Images {
    /// Opens the files that `spec` names, and reads the kernel and initrd if they are pipes. `watch` may stop that.
    /// Creates and changes nothing, but starts passt for networks that want it.
    ///
    /// # Errors
    /// [`ImageError`] names the file that can't be used, and why.
    pub fn open(spec: &VmSpec, watch: &dyn Watch) -> Result<Self, ImageError> {
        let initrd = spec.initrd.as_deref().map(boot::open_initrd);
        let go_on = || watch.go_on(Step::wait("passt"));
        let images = Images {
            kernel: boot::open_kernel(&spec.kernel)?,
            initrd: initrd.transpose()?,
            backends: Backends::open(spec, &go_on)?,
        };
        let (kernel, initrd) = (&images.kernel, images.initrd.as_ref());
        boot::receive(kernel, initrd, spec.memory, watch)?;
        Ok(images)
    }

    /// The total size of kernel and initrd in bytes.
    pub(super) fn boot_size(&self) -> u64 {
        let initrd = self.initrd.as_ref().map_or(0, Image::size);
        self.kernel.size().saturating_add(initrd)
    }
}
