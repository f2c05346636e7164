// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Snapshots that the guest asks for (`VMM_HC_SNAPSHOT`).

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use log::{info, warn};
use para_abi::KvmErrno;

use super::Session;
use crate::hypercall::calls::Caller;
use crate::machine;
use crate::snapshot::{self, Kind, Labels, Place, Wish};
use crate::vmm::control::State;

/// The most snapshots in a directory, so that a guest can't fill the host's disk.
const MAX_SNAPSHOTS: u32 = 100;

impl Session<'_> {
    /// Writes the snapshot that the guest asked for, if it did, and answers it. Its vCPUs are paused afterwards.
    pub(super) fn serve_guest(&mut self) -> Result<(), machine::Error> {
        let calls = self.machine.calls.clone();
        let Some(snapshots) = calls.snapshots() else {
            return Ok(());
        };
        let Some(caller) = snapshots.caller() else {
            return Ok(());
        };
        self.set_running(false)?;
        // The guest may have ended meanwhile. A copy would go on behind that.
        if self.latch.is_set() {
            return Ok(());
        }
        let answer = match self.write_for(&caller) {
            Ok(()) => 0,
            Err(errno) => errno.as_ret(),
        };
        self.machine.answer(&caller, answer)?;
        snapshots.answered(Instant::now());
        Ok(())
    }

    /// Writes a snapshot in which the call of `caller` returns.
    fn write_for(&mut self, caller: &Caller) -> Result<(), KvmErrno> {
        let dir = self.run.spec.snapshot_dir.clone();
        let dir = dir.ok_or(KvmErrno::KVM_ENOSYS)?;
        // A guest that is told to power off has little time.
        if !matches!(self.state(), State::Running | State::Paused) {
            return Err(KvmErrno::KVM_EIO);
        }
        let place = match claim(&dir) {
            Ok(Some(place)) => place,
            Ok(None) => {
                warn!(
                    "the guest asked for a snapshot, and {dir:?} has {MAX_SNAPSHOTS} already; remove some"
                );
                return Err(KvmErrno::KVM_E2BIG);
            }
            Err(error) => {
                warn!(
                    "the guest's snapshot can't be created in {dir:?} ({error}); create that directory"
                );
                return Err(KvmErrno::KVM_EIO);
            }
        };
        let labels = Labels::default();
        let dir = Place::Directory(place.clone());
        let wish = Wish {
            place: &dir,
            kind: Kind::Full,
        };
        match self.write(wish, &labels, Some(caller.vcpu)) {
            Ok(()) => {
                info!("the guest's snapshot is {place:?}");
                Ok(())
            }
            Err(error) => {
                report(&error);
                // Still empty.
                let _ = fs::remove_dir(&place);
                Err(KvmErrno::KVM_EIO)
            }
        }
    }
}

fn report(error: &snapshot::Error) {
    warn!("the guest asked for a snapshot, but has none: {error}");
}

/// Creates the directory of a new snapshot in `dir`, named by the first number that is free. `None` if none is. Other
/// machines may do the same at the same time.
fn claim(dir: &Path) -> io::Result<Option<PathBuf>> {
    for number in 1..=MAX_SNAPSHOTS {
        let place = dir.join(number.to_string());
        match DirBuilder::new().mode(0o700).create(&place) {
            Ok(()) => return Ok(Some(place)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_numbers_and_end() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("2"), "").unwrap();
        for number in (1..=MAX_SNAPSHOTS).filter(|number| *number != 2) {
            let place = claim(dir.path()).unwrap().unwrap();
            assert_eq!(place, dir.path().join(number.to_string()));
        }
        assert_eq!(claim(dir.path()).unwrap(), None);
        let gone = dir.path().join("gone");
        let error = claim(&gone).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
