// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Disks and networks that come and go while the guest runs.

use std::ffi::OsStr;

use super::changes::{Undo, absent};
use super::drives::{Drive, check_id};
use super::fields::{Fields, wrong};
use super::http::Fault;
use super::model::Model;
use super::nets::Net;
use crate::config::{DiskSpec, Draft, LinkSpec, MaySlot, NetSpec, VmSpec};
use crate::devices::{self, NewDevice, NewLink};
use crate::vmm::control::Command;

/// A command for the machine, and what its answer does to the description.
type Change = (Command, Undo);

impl Model {
    /// `PUT /drives/{id}` while the guest runs.
    pub(super) fn add_drive(&mut self, id: &str, fields: Fields) -> Result<Change, Fault> {
        let drive = Drive::parse(id, fields)?;
        self.slot_for(id)?;
        if drive.is_root {
            let why = "the guest has started from its root device; say false for another disk";
            return Err(wrong("is_root_device", why));
        }
        self.add_disk(drive, "path_on_host")
    }

    /// `PUT /network-interfaces/{id}` while the guest runs.
    pub(super) fn add_net(&mut self, id: &str, fields: Fields) -> Result<Change, Fault> {
        let net = Net::parse(id, fields)?;
        self.add_network(net, "host_dev_name")
    }

    /// `PUT /devices/{id}`: a device in the words of its flag.
    pub(super) fn add_device(&mut self, id: &str, mut fields: Fields) -> Result<Change, Fault> {
        check_id("id", id, fields.text("id")?)?;
        let (disk, net) = (fields.text("disk")?, fields.text("net")?);
        fields.finish()?;
        let read = |key, word: &str| {
            let mut draft = Draft::default();
            let said = draft.say(key, OsStr::new(word));
            let spec = said.and_then(|()| draft.finish_partly());
            spec.map_err(|error| wrong(key, error))
        };
        match (disk, net) {
            (Some(words), None) => {
                let spec = read("disk", &words)?.disk.pop();
                let spec = Fields::required("disk", spec)?;
                self.add_disk(Drive::named(id, spec), "disk")
            }
            (None, Some(words)) => {
                let spec = read("net", &words)?.net.pop();
                let spec = Fields::required("net", spec)?;
                let id = id.to_owned();
                self.add_network(Net { id, spec }, "net")
            }
            _ => Err(Fault::new(
                "a device is a disk or a network; give one of disk and net",
            )),
        }
    }

    fn add_disk(&mut self, mut drive: Drive, field: &str) -> Result<Change, Fault> {
        let slot = self.slot_for(&drive.id)?;
        drive.spec.slot = Some(slot);
        let mut spec = self.spec.clone();
        spec.disk.push(drive.spec.clone());
        self.check_new(&spec, field)?;
        let image = devices::open_disk(&spec, &drive.spec).map_err(|error| wrong(field, error))?;
        let device = NewDevice::Disk(drive.spec.clone(), image);
        self.drives.push(drive);
        Ok(self.added(spec, device, slot))
    }

    fn add_network(&mut self, mut net: Net, field: &str) -> Result<Change, Fault> {
        let slot = self.slot_for(&net.id)?;
        net.spec.slot = Some(slot);
        let mut spec = self.spec.clone();
        spec.net.push(net.spec.clone());
        self.check_new(&spec, field)?;
        if matches!(net.spec.link, LinkSpec::Fd(_)) {
            let why = "descriptors are inherited at the start; name a tap, or say user";
            return Err(wrong(field, why));
        }
        let link = NewLink::open(&net.spec).map_err(|error| wrong(field, error))?;
        let device = NewDevice::Net(net.spec.clone(), link);
        self.nets.push(net);
        Ok(self.added(spec, device, slot))
    }

    fn added(&mut self, spec: VmSpec, device: NewDevice, slot: u8) -> Change {
        self.spec = spec;
        (Command::AddDevice(Box::new(device)), Undo::Added { slot })
    }

    /// A slot for a new device with this name.
    fn slot_for(&self, id: &str) -> Result<u8, Fault> {
        if self.spec.hotplug.0 == 0 {
            return Err(Fault::new(
                "The requested operation is not supported after starting the microVM: it has no slots for new devices; \
                 start it with --hotplug 4, and --virtio pci",
            ));
        }
        if self.is_sealed() {
            return Err(Fault::new(
                "a sealed machine has started, so nothing can be opened for a new device; describe it before",
            ));
        }
        let mut ids = self.drives.iter().map(|drive| &drive.id);
        if ids.any(|other| other == id) || self.nets.iter().any(|net| net.id == id) {
            return Err(Fault::new(format!(
                "there is a device {id:?} already; remove it, or choose another name"
            )));
        }
        self.spec.free_slot().ok_or_else(|| {
            let slots = self.spec.hotplug.0;
            Fault::new(format!(
                "all {slots} slots of the machine have devices; remove one"
            ))
        })
    }

    /// Checks a description with a new device.
    fn check_new(&self, spec: &VmSpec, field: &str) -> Result<(), Fault> {
        spec.check_devices().map_err(|error| wrong(field, error))?;
        if self.writes_to(spec) {
            let why = "this process writes its log, its metrics or the guest's console there; choose another file";
            return Err(wrong(field, why));
        }
        Ok(())
    }

    /// `DELETE /drives/{id}`.
    pub(super) fn remove_drive(&self, id: &str) -> Result<Change, Fault> {
        let at = self.drives.iter().position(|drive| drive.id == id);
        let ids = self.drives.iter().map(|drive| drive.id.as_str());
        let at = at.ok_or_else(|| absent("drive_id", id, "disks", ids))?;
        removal(id, self.spec.disk.get(at).and_then(DiskSpec::slot), false)
    }

    /// `DELETE /network-interfaces/{id}`.
    pub(super) fn remove_net(&self, id: &str) -> Result<Change, Fault> {
        let at = self.nets.iter().position(|net| net.id == id);
        let ids = self.nets.iter().map(|net| net.id.as_str());
        let at = at.ok_or_else(|| absent("iface_id", id, "networks", ids))?;
        removal(id, self.spec.net.get(at).and_then(NetSpec::slot), false)
    }

    /// `DELETE /devices/{id}`.
    pub(super) fn remove_device(&self, id: &str, force: bool) -> Result<Change, Fault> {
        let disk = self.drives.iter().position(|drive| drive.id == id);
        let net = self.nets.iter().position(|net| net.id == id);
        let slot = match (disk, net) {
            (Some(at), _) => self.spec.disk.get(at).and_then(DiskSpec::slot),
            (None, Some(at)) => self.spec.net.get(at).and_then(NetSpec::slot),
            (None, None) => {
                let disks = self.drives.iter().map(|drive| drive.id.as_str());
                let all = disks.chain(self.nets.iter().map(|net| net.id.as_str()));
                return Err(absent("id", id, "devices", all));
            }
        };
        removal(id, slot, force)
    }

    /// Removes the device in a slot from the description.
    pub(super) fn drop_device(&mut self, slot: u8) {
        let is_here = |found: Option<u8>| found == Some(slot);
        if let Some(at) = self.spec.disk.iter().position(|disk| is_here(disk.slot)) {
            self.spec.disk.remove(at);
            self.drives.remove(at);
        }
        if let Some(at) = self.spec.net.iter().position(|net| is_here(net.slot)) {
            self.spec.net.remove(at);
            self.nets.remove(at);
        }
    }
}

fn removal(id: &str, slot: Option<u8>, force: bool) -> Result<Change, Fault> {
    let slot = slot.ok_or_else(|| {
        Fault::new(format!(
            "{id:?} has no slot, so it stays as long as the machine; only devices with slot=N or added later can go"
        ))
    })?;
    Ok((
        Command::RemoveDevice { slot, force },
        Undo::Removed { slot },
    ))
}
