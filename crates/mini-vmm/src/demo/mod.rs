// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `mini-vmm demo`: a bare guest registers for hypercalls like the guests of 2007, and shows the result.
//!
//! The guest is a kilobyte of machine code and text in this program. It is wrapped in an ELF file and run like any
//! kernel, on the same machine and routes. It prints the para page and the stub before and after its registration, what
//! a call returns, and how long a call takes.

use std::path::Path;
use std::time::Duration;

use crate::boot::{FileError, Image};
use crate::config::{HypercallRoute, OnReboot, SerialSpec, VmSpec};
use crate::console::Console;
use crate::devices::Backends;
use crate::layout::{DEMO_GUEST, MIN_RAM};
use crate::machine::Images;
use crate::outcome::Outcome;
use crate::sys::demo_guest;
use crate::vmm;

/// The guest's memory including its para page, in bytes.
const SIZE: u32 = 0x3000;
/// The time limit. It takes a fifth of a second, or a few seconds in an emulated machine.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the demonstration failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest is not a valid image.
    #[error("the demo's guest can't be loaded ({0}); build mini-vmm again")]
    Guest(#[from] FileError),
    /// The machine can't be built or run.
    #[error(transparent)]
    Run(#[from] vmm::Error),
    /// The guest reported an error.
    #[error(
        "the demo's guest gave up on route {0}, its last line says why; try another --hypercall"
    )]
    GaveUp(HypercallRoute),
    /// The guest did not end in time.
    #[error("the demo's guest did not end in time on route {route}; {}", late(.0), route = .0)]
    Stuck(HypercallRoute),
    /// A vCPU failed: the WRMSR faulted, or the stub did.
    #[error("the demo's guest failed on route {route}; {}", dead(.0), route = .0)]
    Failed(HypercallRoute),
}

/// Whether calls on `route` use an instruction that a KVM may not complete.
fn by_vendor(route: &HypercallRoute) -> bool {
    matches!(route, HypercallRoute::Vendor | HypercallRoute::Forward)
}

/// The next step if the guest takes too long.
fn late(route: &HypercallRoute) -> &'static str {
    match by_vendor(route) {
        true => "this KVM may not complete its calls, try --hypercall pio",
        false => "run it again when the host is less busy",
    }
}

/// The next step if the guest died.
fn dead(route: &HypercallRoute) -> &'static str {
    match by_vendor(route) {
        true => "try --hypercall pio",
        false => "`mini-vmm check` says what this KVM lacks, and -v what the guest was refused",
    }
}

/// Runs the guest with its hypercalls on `route`; it prints on standard output. Returns the exit code: 0, or that of a
/// signal that ended it.
///
/// # Errors
/// When it can't run on this host, or its registration failed.
pub fn run(route: HypercallRoute) -> Result<u8, Error> {
    let images = images()?;
    // This guest has no power button driver.
    let grace = Duration::ZERO;
    let outcome = vmm::run_images(
        &spec(route),
        |_| Ok(images),
        grace,
        Console::standard_output,
    )?;
    match outcome {
        Outcome::GuestExit(0) | Outcome::PowerOff => Ok(0),
        Outcome::GuestPanic => Err(Error::GaveUp(route)),
        Outcome::Timeout => Err(Error::Stuck(route)),
        Outcome::Signal(_) => Ok(outcome.exit_code()),
        _ => Err(Error::Failed(route)),
    }
}

/// The guest, wrapped as a kernel.
pub(crate) fn images() -> Result<Images, FileError> {
    let name = Path::new("demo");
    Ok(Images {
        kernel: Image::from_bytes(elf(demo_guest::code()), name)?,
        initrd: None,
        backends: Backends::default(),
    })
}

/// The smallest machine, with a serial console.
pub(crate) fn spec(route: HypercallRoute) -> VmSpec {
    VmSpec {
        memory: MIN_RAM,
        serial: SerialSpec::Stdio,
        hypercall: route,
        // The guest does the same at every start, so a reset would only repeat the failure.
        on_reboot: OnReboot::Exit,
        timeout: Some(TIMEOUT),
        ..VmSpec::new("demo")
    }
}

/// An ELF file with one segment: `code` and space for the para page (System V ABI, "Object Files").
fn elf(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let load = u64::from(DEMO_GUEST);
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec(); // 64 bits, little-endian, version 1
    elf.resize(16, 0);
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // an executable, x86-64, version 1
    let words = [load, 64, 0]; // entry, program headers, no section headers
    elf.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    // Flags; sizes of the header and of one program header; section headers.
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 7, 0, 0, 0]); // to be loaded, all rights
    let words = [
        HEADERS,
        load,
        load,
        code.len() as u64,
        u64::from(SIZE),
        1, // no alignment within the file
    ];
    elf.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(code);
    elf
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::DEMO_PARA_PAGE;

    #[test]
    fn the_guest_fits_before_its_page() {
        let code = demo_guest::code();
        assert!(code.len() > 500, "{} bytes", code.len());
        assert!(code.len() <= (DEMO_PARA_PAGE - DEMO_GUEST) as usize);
        assert_eq!(DEMO_PARA_PAGE % 4096, 0);
        // The stub of the guests of 2007, at an address where a host can replace it with one store.
        let stub = [0xb8, 0xda, 0xff, 0xff, 0xff, 0xc3];
        let found: Vec<usize> = code
            .windows(6)
            .enumerate()
            .filter_map(|(at, window)| (window == stub).then_some(at))
            .collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0] % 4, 0);
    }

    #[test]
    fn what_helps_is_not_the_route_that_failed() {
        for route in [HypercallRoute::Auto, HypercallRoute::Pio(None)] {
            for error in [Error::Stuck(route), Error::Failed(route)] {
                assert!(
                    !error.to_string().contains("try --hypercall pio"),
                    "{error}"
                );
            }
        }
        for error in [
            Error::Stuck(HypercallRoute::Vendor),
            Error::Failed(HypercallRoute::Forward),
        ] {
            assert!(
                error.to_string().ends_with("try --hypercall pio"),
                "{error}"
            );
        }
    }

    #[test]
    fn its_machine_is_one_that_can_be_built() {
        let route = HypercallRoute::Pio(None);
        spec(route).validate().unwrap();
        assert_eq!(spec(route).hypercall, route);
        assert!(spec(route).debug_exit.is_none());
    }
}
