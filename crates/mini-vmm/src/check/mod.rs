// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Opens KVM, and says what this host can do with it.

mod capabilities;
mod report;
mod routes;

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use kvm_ioctls::Kvm;

use crate::probe::host;
pub use crate::probe::{Cpu, GuestTest, Step, Virtualization};
pub use capabilities::Capability;
pub use report::{Report, Vcpus, probe};
pub use routes::{AutoRoute, Routes, VendorRoute};

/// The only version of the KVM API there ever was since it became stable (KVM API section 4.1).
const API_VERSION: i32 = 12;

/// Why KVM can't be used; each with the next step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no device.
    #[error("there is no {}; {hint}", path.display())]
    Missing {
        /// The device.
        path: PathBuf,
        /// What may bring it.
        hint: Hint,
    },
    /// The device may not be opened by this user.
    #[error("no permission to use {}; {hint}", path.display())]
    Permission {
        /// The device.
        path: PathBuf,
        /// What may give the permission.
        hint: Hint,
    },
    /// The device is there and nothing serves it, or it is in use by another hypervisor.
    #[error("{} can't be opened ({source}); {hint}", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
        /// What may help.
        hint: Hint,
    },
    /// The path holds something else.
    #[error("{} is not KVM; use the device /dev/kvm", path.display())]
    NotKvm {
        /// The path.
        path: PathBuf,
    },
    /// The host's KVM has another API.
    #[error(
        "{} has KVM API version {version} and {API_VERSION} is needed; use a Linux host kernel of 2.6.22 or later",
        path.display()
    )]
    ApiVersion {
        /// The device.
        path: PathBuf,
        /// The version that it has.
        version: i32,
    },
    /// The host's KVM lacks something that every machine needs.
    #[error(
        "this host's KVM lacks {} ({}); use a host kernel that has it, Linux 4.12 or later",
        capability.name,
        capability.purpose
    )]
    Capability {
        /// What it lacks.
        capability: Capability,
    },
}

/// The next step after an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Load the module that serves this CPU.
    LoadModule(Virtualization),
    /// The CPU shows no virtualization.
    EnableVirtualization,
    /// Join the group that may use the device.
    JoinGroup(String),
    /// Change the device's permissions: no group has any.
    ChangeMode(PathBuf),
    /// Stop the other hypervisor.
    StopOther,
    /// Look at the path.
    CheckPath,
}

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Hint::LoadModule(virtualization) => {
                write!(f, "load its module: modprobe {}", virtualization.module())
            }
            Hint::EnableVirtualization => f.write_str(
                "this CPU shows neither vmx nor svm: turn virtualization on in the firmware, \
                 or nested virtualization where this host is itself a virtual machine",
            ),
            Hint::JoinGroup(group) => {
                write!(
                    f,
                    "join its group and log in again: sudo usermod -aG {group} \"$USER\""
                )
            }
            Hint::ChangeMode(path) => {
                write!(
                    f,
                    "let your user in: sudo setfacl -m u:\"$USER\":rw {}",
                    path.display()
                )
            }
            Hint::StopOther => f.write_str("stop the other hypervisor that uses the CPU"),
            Hint::CheckPath => f.write_str("check the path and the kernel's log"),
        }
    }
}

/// Opens KVM and makes sure that it has what every machine needs.
///
/// # Errors
/// When there is no KVM at `path`, this user may not use it, or it lacks something; see [`Error`].
pub fn open_kvm(path: &Path) -> Result<Kvm, Error> {
    let kvm = open(path)?;
    match capabilities::missing(&kvm) {
        Some(capability) => Err(Error::Capability { capability }),
        None => Ok(kvm),
    }
}

/// Opens KVM and makes sure that it is KVM.
fn open(path: &Path) -> Result<Kvm, Error> {
    let error = |source| open_error(path, source, host::Cpu::here().virtualization);
    let c_path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| error(io::Error::from_raw_os_error(libc::EINVAL)))?;
    let kvm =
        Kvm::new_with_path(c_path).map_err(|e| error(io::Error::from_raw_os_error(e.errno())))?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        // No device but KVM's answers this request with a number of this kind.
        version if version <= 0 => Err(Error::NotKvm {
            path: path.to_owned(),
        }),
        version => Err(Error::ApiVersion {
            path: path.to_owned(),
            version,
        }),
    }
}

/// What a failed open means, and what to do about it.
fn open_error(path: &Path, source: io::Error, virtualization: Option<Virtualization>) -> Error {
    let path = path.to_owned();
    let load = virtualization.map_or(Hint::EnableVirtualization, Hint::LoadModule);
    match source.raw_os_error() {
        Some(libc::ENOENT) => Error::Missing { path, hint: load },
        Some(libc::EACCES | libc::EPERM) => {
            let hint = permission_hint(&path);
            Error::Permission { path, hint }
        }
        Some(libc::EISDIR) => Error::NotKvm { path },
        Some(libc::ENXIO | libc::ENODEV) => Error::Open {
            path,
            source,
            hint: load,
        },
        Some(libc::EBUSY) => Error::Open {
            path,
            source,
            hint: Hint::StopOther,
        },
        _ => Error::Open {
            path,
            source,
            hint: Hint::CheckPath,
        },
    }
}

/// The group to join, where the device's group may read and write.
fn permission_hint(path: &Path) -> Hint {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    match fs::metadata(path) {
        Ok(device) if device.mode() & 0o060 == 0o060 => host::group_name(&groups, device.gid())
            .map_or_else(|| Hint::ChangeMode(path.to_owned()), Hint::JoinGroup),
        _ => Hint::ChangeMode(path.to_owned()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
