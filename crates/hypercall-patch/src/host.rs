// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The vendor of the processor that this process runs on.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use crate::{UnknownVendor, Vendor};

const CPUINFO: &str = "/proc/cpuinfo";

/// The vendor is on the second line of the first processor, which takes less than 4 KiB.
const CPUINFO_MAX: u64 = 16 * 1024;

impl Vendor {
    /// The vendor of the host's processor, as its kernel names it in `/proc/cpuinfo`.
    ///
    /// CPUID itself needs an `unsafe` block on the Rust versions that this crate supports. A VMM that holds
    /// the table of `KVM_GET_SUPPORTED_CPUID` can use [`Vendor::from_cpuid`] instead and read no file.
    ///
    /// # Errors
    ///
    /// [`HostVendorError`] if the file can't be read, names no vendor, or names one that isn't known.
    ///
    /// # Examples
    ///
    /// ```
    /// use hypercall_patch::{HostVendorError, Stub, Vendor};
    ///
    /// match Vendor::of_host() {
    ///     Ok(vendor) => println!("{vendor}: {}", Stub::native(vendor)),
    ///     Err(error) => println!("{error}"),
    /// }
    /// ```
    pub fn of_host() -> Result<Self, HostVendorError> {
        let cpuinfo = File::open(CPUINFO).map_err(HostVendorError::Read)?;
        in_cpuinfo(cpuinfo)
    }
}

fn in_cpuinfo(cpuinfo: impl Read) -> Result<Vendor, HostVendorError> {
    for line in BufReader::new(cpuinfo.take(CPUINFO_MAX)).split(b'\n') {
        let line = line.map_err(HostVendorError::Read)?;
        let Some(value) = line.strip_prefix(b"vendor_id") else {
            continue;
        };
        // The blanks around `  Shanghai  ` belong to it, the one behind the colon doesn't.
        let value = value.trim_ascii_start();
        let Some(id) = value.strip_prefix(b": ") else {
            continue;
        };
        return match <&[u8; 12]>::try_from(id) {
            Ok(id) => Vendor::from_id(id).map_err(HostVendorError::Unknown),
            Err(_) => Err(HostVendorError::Missing),
        };
    }
    Err(HostVendorError::Missing)
}

/// Why the host's processor vendor isn't known.
#[derive(Debug)]
#[non_exhaustive]
pub enum HostVendorError {
    /// `/proc/cpuinfo` can't be read.
    Read(io::Error),
    /// `/proc/cpuinfo` has no `vendor_id` of twelve characters, as on other architectures.
    Missing,
    /// The kernel names a vendor whose hypercall instruction isn't known.
    Unknown(UnknownVendor),
}

impl fmt::Display for HostVendorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(_) => write!(
                f,
                "{CPUINFO} can't be read to learn the processor vendor; is /proc mounted?"
            ),
            Self::Missing => write!(
                f,
                "{CPUINFO} names no x86 processor vendor; take the vendor from KVM's CPUID table, or use \
                 hypercalls by port I/O"
            ),
            Self::Unknown(unknown) => unknown.fmt(f),
        }
    }
}

impl std::error::Error for HostVendorError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Read(error) => Some(error),
            // `Unknown` shows its text itself.
            Self::Missing | Self::Unknown(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::error::Error;
    use std::fs;

    use super::*;

    fn cpuinfo(vendor: &str) -> String {
        format!(
            "processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: 6\nmodel name\t: vendor_id\t: x\n"
        )
    }

    #[test]
    fn every_vendor_is_found_with_its_blanks() {
        for vendor in Vendor::ALL {
            let text = cpuinfo(std::str::from_utf8(vendor.id()).unwrap());
            assert_eq!(in_cpuinfo(text.as_bytes()).unwrap(), vendor);
        }
    }

    #[test]
    fn an_unknown_vendor_is_named() {
        let error = in_cpuinfo(cpuinfo("RiseRiseRise").as_bytes()).unwrap_err();
        assert!(
            matches!(error, HostVendorError::Unknown(UnknownVendor(id)) if &id == b"RiseRiseRise")
        );
        assert!(error.to_string().contains("\"RiseRiseRise\""), "{error}");
    }

    #[test]
    fn a_file_without_vendor_is_no_endless_read() {
        for text in [
            "",
            "processor\t: 0\n",
            "vendor_id\t: short\n",
            "vendor_id GenuineIntel\n",
        ] {
            assert!(
                matches!(in_cpuinfo(text.as_bytes()), Err(HostVendorError::Missing)),
                "{text:?}"
            );
        }
        assert!(matches!(
            in_cpuinfo(io::repeat(b'x')),
            Err(HostVendorError::Missing)
        ));
        assert!(matches!(
            in_cpuinfo(io::repeat(b'\n')),
            Err(HostVendorError::Missing)
        ));
    }

    #[test]
    fn a_failed_read_keeps_its_cause() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("gone"))
            }
        }
        let error = in_cpuinfo(Broken).unwrap_err();
        assert_eq!(error.source().unwrap().to_string(), "gone");
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_hosts_vendor_is_the_one_its_kernel_names() {
        let text = fs::read_to_string(CPUINFO).unwrap();
        match Vendor::of_host() {
            Ok(vendor) => assert!(text.contains(std::str::from_utf8(vendor.id()).unwrap())),
            Err(error) => assert!(
                Vendor::ALL
                    .iter()
                    .all(|v| !text.contains(std::str::from_utf8(v.id()).unwrap())),
                "{error}"
            ),
        }
    }
}
