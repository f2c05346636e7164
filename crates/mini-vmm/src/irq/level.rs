// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Level-triggered interrupt lines.

use std::io;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;
use vmm_sys_util::eventfd::EventFd;

use super::IrqLine;
use crate::sys::eventfd::duplicate;

/// A level-triggered interrupt line (`KVM_IRQFD_FLAG_RESAMPLE`, KVM API section 4.75). Clones are the same line.
///
/// [`raise`](Self::raise) asserts it. It stays asserted until the guest has served the interrupt (EOI). Then KVM
/// de-asserts it, and [`served`](Self::served) becomes readable. A device that still has a reason raises it again. A
/// restored device may do so, too: a line is not part of the saved state.
///
/// Like an edge-triggered line, it is connected at the first interrupt.
#[derive(Clone, Debug)]
pub struct LevelLine {
    line: IrqLine,
    served: Arc<OwnedFd>,
}

impl LevelLine {
    /// A line that is connected by `connect`. It gets the eventfd that raises the line, and the one to write when an
    /// interrupt was served. It runs on the thread that raises the first interrupt.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new(
        connect: impl Fn(&EventFd, &EventFd) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let served = Arc::new(eventfd(0, flags)?);
        let end = Arc::clone(&served);
        let line = IrqLine::new(move |event| connect(event, &duplicate(&end)?));
        Ok(LevelLine { line, served })
    }

    /// Asserts the line.
    ///
    /// # Errors
    /// When the process has no file descriptor left for the eventfd, or it can't be connected.
    pub fn raise(&self) -> io::Result<()> {
        self.line.raise()
    }

    /// Becomes readable when the guest has served an interrupt of this pin. The reader drains it, then checks the
    /// device. A device without a reason to interrupt does nothing.
    pub fn served(&self) -> &Arc<OwnedFd> {
        &self.served
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::sync::lock;

    #[test]
    fn whoever_connects_it_gets_both_ends() {
        let ends = Arc::new(Mutex::new(Vec::new()));
        let connected = Arc::clone(&ends);
        let line = LevelLine::new(move |raise, served| {
            lock(&connected).push((raise.try_clone()?, served.try_clone()?));
            Ok(())
        })
        .unwrap();
        assert!(lock(&ends).is_empty(), "it is late");
        line.raise().unwrap();
        line.clone().raise().unwrap();
        let ends = std::mem::take(&mut *lock(&ends));
        let [(raise, served)] = &ends[..] else {
            panic!("it is connected once: {ends:?}");
        };
        assert_eq!(raise.read().unwrap(), 2);
        assert!(rustix::io::read(line.served(), &mut [0; 8]).is_err());
        served.write(1).unwrap();
        assert_eq!(rustix::io::read(line.served(), &mut [0; 8]).unwrap(), 8);
    }
}
