// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Machines from snapshots.

use super::Error;
use super::drives::check_id;
use super::http::Fault;
use super::model::Model;
use super::snapshots::Load;
use crate::config::{OnReboot, SerialSpec, VmSpec};
use crate::snapshot::Labels;

impl Model {
    /// Begins with a saved machine that has what `spec` says, and whose devices clients called as in `labels`.
    ///
    /// # Errors
    /// [`Error::Model`]: a name is none.
    pub fn restored(spec: VmSpec, labels: &Labels) -> Result<Self, Error> {
        let mut model = Model::new(spec, "");
        let called = model.call_devices(labels);
        called.map_err(|fault| Error::Model(fault.message))?;
        Ok(model)
    }

    /// Calls the devices as clients did.
    fn call_devices(&mut self, labels: &Labels) -> Result<(), Fault> {
        for (drive, id) in self.drives.iter_mut().zip(&labels.drives) {
            check_id("drive_id", id, None)?;
            drive.id.clone_from(id);
        }
        for (net, id) in self.nets.iter_mut().zip(&labels.nets) {
            check_id("iface_id", id, None)?;
            net.id.clone_from(id);
        }
        self.mmds.adopt(self.spec.mmds.as_ref(), &self.nets);
        Ok(())
    }

    /// What clients call the devices.
    pub(super) fn labels(&self) -> Labels {
        Labels {
            drives: self.drives.iter().map(|drive| drive.id.clone()).collect(),
            nets: self.nets.iter().map(|net| net.id.clone()).collect(),
        }
    }

    /// The description of a machine from a snapshot, in this process. What the host gives it is as it was saved, unless
    /// `load` or this description says otherwise.
    pub(super) fn loaded(
        &self,
        saved: VmSpec,
        labels: &Labels,
        load: &Load,
    ) -> Result<Model, Fault> {
        let ours = self.spec.clone();
        let serial = match saved.serial {
            SerialSpec::Off => SerialSpec::Off,
            _ => ours.serial,
        };
        // A guest with a virtio console needs a place for it.
        let console = match (saved.console, ours.console) {
            (SerialSpec::Off, _) => SerialSpec::Off,
            (_, SerialSpec::Off) => SerialSpec::Stdio,
            (_, ours) => ours,
        };
        let spec = VmSpec {
            serial,
            console,
            serial_bandwidth: ours.serial_bandwidth,
            metrics: ours.metrics,
            event_log: ours.event_log,
            timeout: ours.timeout,
            sealed: ours.sealed,
            snapshot_dir: ours.snapshot_dir,
            on_reboot: OnReboot::Exit,
            vcpu_thread: ours.vcpu_thread,
            track_dirty_pages: load.tracks,
            ..saved
        };
        let mut model = Model::new(spec, "");
        model.logger = self.logger.clone();
        model.call_devices(labels)?;
        model.mmds.store = self.mmds.store.clone();
        load.move_vsock(&mut model.spec)?;
        load.redirect(&mut model.nets)?;
        model.spec.net = model.nets.iter().map(|net| net.spec.clone()).collect();
        Ok(model)
    }

    /// The description of a machine that was saved: it needs no kernel.
    ///
    /// # Errors
    /// Its metadata service has a network that is not there.
    pub(super) fn saved(&self) -> Result<VmSpec, Fault> {
        let mut spec = self.spec.clone();
        spec.mmds = self.mmds.spec(&self.nets)?;
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DiskSpec, LinkSpec, NetSpec};

    #[test]
    fn a_restored_machine_has_the_names_that_clients_gave() {
        let spec = VmSpec {
            disk: vec![DiskSpec::new("a"), DiskSpec::new("b")],
            net: vec![NetSpec::new(LinkSpec::Tap("tap0".into()))],
            ..VmSpec::new("")
        };
        let labels = Labels {
            drives: vec!["rootfs".into(), "data".into()],
            nets: vec!["eth0".into()],
        };
        let model = Model::restored(spec.clone(), &labels).unwrap();
        assert_eq!(model.labels(), labels);
        // Those of a snapshot without an API are none.
        let model = Model::restored(spec.clone(), &Labels::default()).unwrap();
        assert_eq!(model.labels().drives, ["disk0", "disk1"]);
        let nets = vec!["a/b".into()];
        let hostile = Labels { nets, ..labels };
        let error = Model::restored(spec, &hostile).unwrap_err().to_string();
        assert!(error.starts_with("iface_id: "), "{error}");
    }
}
