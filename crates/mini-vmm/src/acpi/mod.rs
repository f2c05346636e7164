// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ACPI tables: all that a guest with ACPI learns about the machine outside of CPUID.
//!
//! Without a PIT and a PIC the platform is hardware-reduced (ACPI 6.5, section 4.1): no PM timer, no fixed event
//! registers, no FACS. Sleep control and reset are two registers, and events are one device. So a kernel probes for
//! nothing that isn't there. Section numbers in this module are those of the ACPI specification, version 6.5.

mod dsdt;
mod tables;

use std::io;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use pci_root::acpi::mcfg;
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use crate::layout;
use crate::plan::MachinePlan;

/// `OEMID` of every table (section 5.2.6).
const OEM_ID: [u8; 6] = *b"MINVMM";
/// `OEM Table ID` of every table.
const OEM_TABLE_ID: [u8; 8] = *b"MINIVMM ";
/// `OEM Revision` of every table.
const OEM_REVISION: u32 = 1;
/// Length in bytes of the header that every table except the RSDP starts with (section 5.2.6).
const HEADER_LEN: u32 = 36;
/// The alignment of tables. The search for the RSDP requires it (section 5.2.5.1).
const TABLE_ALIGN: usize = 16;

/// The code at [`layout::BIOS_ENTRY`]. Linux restarts a hardware-reduced machine through EFI, or without EFI by a jump
/// there. It doesn't use the reset register then. So this code writes to that register.
///
/// `mov dx, ACPI_RESET; mov al, ACPI_RESET_VALUE; out dx, al; hlt`, 16-bit code.
const RESTART: [u8; 7] = {
    let [low, high] = layout::ACPI_RESET.to_le_bytes();
    [0xba, low, high, 0xb0, layout::ACPI_RESET_VALUE, 0xee, 0xf4]
};

/// Why the tables can't be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine has no vCPU, or more than the tables can describe.
    #[error("ACPI tables describe 1 to {max} vCPUs, not {0}", max = layout::MAX_CPUS)]
    Cpus(u8),
    /// The tables are larger than the space that the layout reserves.
    #[error(
        "the ACPI tables take {0} bytes and there are {room} for them; ask for fewer vCPUs",
        room = layout::ACPI_TABLES_SIZE
    )]
    TooLarge(usize),
    /// Guest memory has no RAM at the tables' address.
    #[error(
        "the ACPI tables don't fit guest memory at {:#x}; give the machine at least {} MiB",
        layout::ACPI_TABLES,
        layout::MIN_RAM / layout::MIB
    )]
    Memory(#[source] GuestMemoryError),
    /// The host has no random numbers.
    #[error(
        "can't get random numbers for the machine's generation ID ({0}); let this process call getrandom"
    )]
    Random(io::Error),
}

/// Writes the tables to [`layout::ACPI_TABLES`] and returns the address of the RSDP. Also writes a generation ID, and a
/// few instructions to the old entry point of the BIOS, which reset the machine: Linux jumps there to restart a
/// hardware-reduced machine without EFI.
///
/// # Errors
/// When the number of vCPUs is out of range, guest memory doesn't reach there, or the host has no random numbers.
pub fn write_tables<M: GuestMemory>(
    memory: &M,
    machine: &MachinePlan,
) -> Result<GuestAddress, Error> {
    let image = build(machine)?;
    let address = GuestAddress(layout::ACPI_TABLES);
    memory.write_slice(&image, address).map_err(Error::Memory)?;
    memory
        .write_slice(&RESTART, GuestAddress(layout::BIOS_ENTRY))
        .map_err(Error::Memory)?;
    renew_generation(memory)?;
    Ok(address)
}

/// Writes a new random generation ID to [`layout::VM_GENERATION_ID`]. Drivers ask the host for it only after an event.
///
/// # Errors
/// When guest memory doesn't reach there, or the host has no random numbers.
pub fn renew_generation<M: GuestMemory>(memory: &M) -> Result<(), Error> {
    let mut id = [0; layout::VM_GENERATION_ID_SIZE as usize];
    // The kernel fills up to 256 bytes at once.
    getrandom(&mut id, GetRandomFlags::empty()).map_err(|errno| Error::Random(errno.into()))?;
    memory
        .write_slice(&id, GuestAddress(layout::VM_GENERATION_ID))
        .map_err(Error::Memory)
}

/// All tables as they will lie in memory from [`layout::ACPI_TABLES`] on, the RSDP first.
fn build(machine: &MachinePlan) -> Result<Vec<u8>, Error> {
    if machine.cpus == 0 || machine.cpus > layout::MAX_CPUS {
        return Err(Error::Cpus(machine.cpus));
    }
    // Reserves the RSDP. It needs the address of the XSDT, which comes last.
    let mut image = vec![0; Rsdp::len().next_multiple_of(TABLE_ALIGN)];
    let facs = machine.legacy_timer.then(|| {
        image.resize(image.len().next_multiple_of(tables::FACS_ALIGN), 0);
        place(&mut image, &tables::facs())
    });
    let dsdt = place(&mut image, &dsdt::dsdt(machine));
    let fadt = place(&mut image, &tables::fadt(machine, dsdt, facs));
    let madt = place(&mut image, &tables::madt(machine));
    let mut listed = vec![fadt, madt];
    for windows in machine.devices.iter().filter_map(|device| device.pci) {
        let mcfg = mcfg(&windows, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        listed.push(place(&mut image, &mcfg));
    }
    let xsdt = place(&mut image, &tables::xsdt(&listed));

    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    image[..rsdp.len()].copy_from_slice(&rsdp);

    if image.len() as u64 > layout::ACPI_TABLES_SIZE {
        return Err(Error::TooLarge(image.len()));
    }
    Ok(image)
}

/// Appends a table and returns the guest-physical address that it will have.
fn place(image: &mut Vec<u8>, table: &[u8]) -> u64 {
    let offset = image.len().next_multiple_of(TABLE_ALIGN);
    image.resize(offset, 0);
    image.extend_from_slice(table);
    layout::ACPI_TABLES + offset as u64
}

/// A table from its body. Sums it up in one pass, where `Sdt`'s own sink updates the checksum after each byte.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut sdt = Sdt::new(
        *signature,
        HEADER_LEN,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    sdt.append_slice(body);
    sdt.as_slice().to_vec()
}

#[cfg(test)]
mod tests;
