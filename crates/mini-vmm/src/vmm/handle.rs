// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A run on its own thread, and the handle that controls it.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use vcpu_loop::FailureReport;
use virtio_models::block;

use super::begin::open_console;
use super::run::{Controls, Vmm};
use super::{Ended, Error};
use crate::config::{DiskSpec, VmSpec};
use crate::devices::NewDevice;
use crate::machine::Images;
use crate::machine::MachineState;
use crate::outcome::Outcome;
use crate::snapshot::{Kind, Labels, Place};
use crate::sync::lock;
use crate::vmm::control::{
    self, Answer, Client, Command, Description, SnapshotOrder, State, Then, door,
};
use crate::vmm::supervisor::TerminationSignals;

/// Controls a run from any thread except a vCPU's. Clones control the same run.
///
/// Each command waits for its answer: for commands before it, for vCPUs, which have ten seconds to obey, and during a
/// reset until the next machine is loaded. A device or a hypercall handler must not send one, because the command would
/// wait for its vCPU. Once the run is over, all commands get [`control::Error::Ended`].
///
/// Dropping the last handle stops the run and waits for its end.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Shared>);

struct Shared {
    client: Client,
    thread: Mutex<Option<JoinHandle<Result<Ended, Error>>>>,
    ended: OnceLock<Result<Ended, Arc<Error>>>,
}

impl Vmm {
    /// Builds the machine that `spec` describes, paused: [`Handle::resume`] starts it. It runs on its own thread, as
    /// does each of its vCPUs. A process can have several machines.
    ///
    /// The caller keeps control of SIGTERM, SIGINT and SIGHUP. The process gets handlers for two real-time signals,
    /// which wake threads of vCPUs and consoles, and ignores SIGXFSZ.
    ///
    /// The time limit of `spec` starts now, and also counts while the machine is paused. If it expires during the
    /// build, the handle is of a run that has ended. Two machines can't share the standard streams: give them different
    /// [consoles](crate::config::SerialSpec).
    ///
    /// # Errors
    /// `spec` describes no possible machine, or the host or a file that it names failed.
    pub fn build(spec: &VmSpec) -> Result<Handle, Error> {
        spec.validate()?;
        super::spare_images(spec)?;
        let (client, door) = door().map_err(Error::Events)?;
        let controls = Controls {
            signals: TerminationSignals::none(),
            grace: Duration::ZERO,
            door,
            meter: Arc::default(),
        };
        let new = Vmm::new(
            spec,
            controls,
            |watch| Ok(Images::open(spec, watch)?.into()),
            || open_console(spec),
        );
        let (thread, ended) = match new? {
            Ok((vmm, built)) => {
                let thread = Builder::new().name("control".to_owned());
                let run = move || vmm.run(built, State::Paused);
                let thread = thread.spawn(run).map_err(Error::Thread)?;
                (Some(thread), OnceLock::new())
            }
            Err(outcome) => (None, OnceLock::from(Ok(outcome.into()))),
        };
        Ok(Handle(Arc::new(Shared {
            client,
            thread: Mutex::new(thread),
            ended,
        })))
    }
}

impl Handle {
    /// Sends `command` and waits for its answer. The methods below are shorter.
    ///
    /// # Errors
    /// [`control::Error`] says why it failed.
    pub fn command(&self, command: Command) -> Result<Answer, control::Error> {
        self.0.client.command(command)
    }

    /// [`Command::Pause`]: afterwards no guest code runs, and nothing is pending.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn pause(&self) -> Result<(), control::Error> {
        self.command(Command::Pause).map(drop)
    }

    /// [`Command::Resume`].
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn resume(&self) -> Result<(), control::Error> {
        self.command(Command::Resume).map(drop)
    }

    /// [`Command::PowerButton`]. The guest decides what to do about it.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn power_button(&self) -> Result<(), control::Error> {
        self.command(Command::PowerButton).map(drop)
    }

    /// [`Command::ResizeDisks`]: make an image larger first. The guest learns its new size soon afterwards.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn resize_disks(&self) -> Result<(), control::Error> {
        self.command(Command::ResizeDisks).map(drop)
    }

    /// [`Command::AddDevice`]. The disk's description names a [slot](crate::config::HotplugSlots) of the machine that is free.
    ///
    /// # Errors
    /// The image can't be used, or as [`command`](Self::command).
    pub fn add_disk(&self, disk: DiskSpec) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let image = block::open(&disk.block())?;
        let device = NewDevice::Disk(disk, image);
        self.command(Command::AddDevice(Box::new(device)))?;
        Ok(())
    }

    /// [`Command::RemoveDevice`], of the device in a slot. Waits until the guest has given it up, for up to
    /// [`GIVE_UP`](control::GIVE_UP). With `force` it does not wait.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn remove_device(&self, slot: u8, force: bool) -> Result<(), control::Error> {
        self.command(Command::RemoveDevice { slot, force })
            .map(drop)
    }

    /// [`Command::Stop`]: [`wait`](Self::wait) then returns soon.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn stop(&self) -> Result<(), control::Error> {
        self.command(Command::Stop).map(drop)
    }

    /// [`Command::Save`]: the state of all but memory.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn save(&self) -> Result<MachineState, control::Error> {
        match self.command(Command::Save)? {
            Answer::Saved(state) => Ok(*state),
            _ => Err(control::Error::Ended),
        }
    }

    /// [`Command::Snapshot`], of all memory, into the directory `dir`. The machine must be paused, and stays so.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn snapshot(&self, dir: impl Into<PathBuf>) -> Result<(), control::Error> {
        let order = SnapshotOrder {
            place: Place::Directory(dir.into()),
            kind: Kind::Full,
            then: Then::StayPaused,
            labels: Labels::default(),
        };
        self.command(Command::Snapshot(order)).map(drop)
    }

    /// [`Command::Describe`].
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn describe(&self) -> Result<Description, control::Error> {
        match self.command(Command::Describe)? {
            Answer::Described(description) => Ok(*description),
            _ => Err(control::Error::Ended),
        }
    }

    /// Waits for the end of the run. All callers get the same result.
    ///
    /// # Errors
    /// A failure of the host.
    pub fn wait(&self) -> Result<Outcome, Arc<Error>> {
        match self.ended() {
            Ok(ended) => Ok(ended.outcome),
            Err(error) => Err(Arc::clone(error)),
        }
    }

    /// The report of a failed vCPU, if the outcome is [`Outcome::VcpuFailure`]. Waits for the end.
    pub fn failure(&self) -> Option<&FailureReport> {
        self.ended().as_ref().ok()?.report.as_deref()
    }

    fn ended(&self) -> &Result<Ended, Arc<Error>> {
        self.0.ended.get_or_init(|| match self.0.join() {
            Some(Ok(ended)) => ended.map_err(Arc::new),
            _ => Err(Arc::new(Error::Panicked)),
        })
    }
}

impl Shared {
    fn join(&self) -> Option<std::thread::Result<Result<Ended, Error>>> {
        let mut thread = lock(&self.thread);
        thread.take().map(JoinHandle::join)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Fails if the run is over; then its thread is only joined.
        let _ = self.client.command(Command::Stop);
        let _ = self.join();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SerialSpec;

    #[test]
    fn the_serial_output_overwrites_no_image() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("vmlinux");
        std::fs::write(&kernel, "kernel").unwrap();
        let spec = VmSpec {
            serial: SerialSpec::File(kernel.clone()),
            ..VmSpec::new(&kernel)
        };
        let text = Vmm::build(&spec).unwrap_err().to_string();
        assert!(text.contains("the serial output would overwrite"), "{text}");
    }
}
