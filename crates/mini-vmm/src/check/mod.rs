// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Opens KVM, and reports what this host can do with it.

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
pub(crate) use capabilities::is_required;
pub use report::{Report, Vcpus, probe};
pub use routes::{AutoRoute, Routes, VendorRoute};

/// The only version of the KVM API since it became stable (KVM API section 4.1).
const API_VERSION: i32 = 12;

/// Why KVM can't be used, with the next step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device does not exist.
    #[error("there is no {}; {hint}", path.display())]
    Missing {
        /// The device.
        path: PathBuf,
        /// How to create it.
        hint: Hint,
    },
    /// This user may not open the device.
    #[error("no permission to use {}; {hint}", path.display())]
    Permission {
        /// The device.
        path: PathBuf,
        /// How to get the permission.
        hint: Hint,
    },
    /// The device exists, but no module serves it, or another hypervisor uses it.
    #[error("{} can't be opened ({source}); {hint}", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
        /// What to try.
        hint: Hint,
    },
    /// The path is something else.
    #[error("{} is not KVM; use the device /dev/kvm", path.display())]
    NotKvm {
        /// The path.
        path: PathBuf,
    },
    /// The host's KVM has another API version.
    #[error(
        "{} has KVM API version {version} and {API_VERSION} is needed; use a Linux host kernel of 2.6.22 or later",
        path.display()
    )]
    ApiVersion {
        /// The device.
        path: PathBuf,
        /// Its API version.
        version: i32,
    },
    /// The host's KVM lacks a capability that every machine needs.
    #[error(
        "this host's KVM lacks {} ({}); use a host kernel that has it, Linux 4.12 or later",
        capability.name,
        capability.purpose
    )]
    Capability {
        /// The missing capability.
        capability: Capability,
    },
}

/// The next step after an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Load the KVM module for this CPU.
    LoadModule(Virtualization),
    /// Enable virtualization; the CPU shows none.
    EnableVirtualization,
    /// Join the group that has access to the device.
    JoinGroup(String),
    /// Change the device's permissions, since no group has access.
    ChangeMode(PathBuf),
    /// Stop the other hypervisor.
    StopOther,
    /// Check the path.
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

/// Opens KVM and checks that it has what every machine needs.
///
/// # Errors
/// When there is no KVM at `path`, this user has no access, or a capability is missing; see [`Error`].
pub fn open_kvm(path: &Path) -> Result<Kvm, Error> {
    let kvm = open(path)?;
    match capabilities::missing(&kvm) {
        Some(capability) => Err(Error::Capability { capability }),
        None => Ok(kvm),
    }
}

/// Opens the path and checks that it is KVM.
fn open(path: &Path) -> Result<Kvm, Error> {
    let error = |source| open_error(path, source, host::Cpu::here().virtualization);
    let c_path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| error(io::Error::from_raw_os_error(libc::EINVAL)))?;
    let kvm =
        Kvm::new_with_path(c_path).map_err(|e| error(io::Error::from_raw_os_error(e.errno())))?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        // No other device answers this request with a number of this kind.
        version if version <= 0 => Err(Error::NotKvm {
            path: path.to_owned(),
        }),
        version => Err(Error::ApiVersion {
            path: path.to_owned(),
            version,
        }),
    }
}

/// The meaning of a failed open, with the next step.
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

/// Suggests the device's group if that group can read and write it.
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
