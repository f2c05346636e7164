// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Edge-triggered interrupt lines.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

type Connect = Box<dyn Fn(&EventFd) -> io::Result<()> + Send + Sync>;

/// An interrupt line, as an eventfd that KVM turns into an edge (irqfd). Clones are the same line.
///
/// The eventfd is created and connected at the first interrupt. So a guest that never enables the device's interrupt
/// needs neither, and the end of the machine doesn't wait for KVM to release an unused irqfd.
#[derive(Clone)]
pub struct IrqLine(Arc<Line>);

struct Line {
    connect: Connect,
    event: OnceLock<EventFd>,
}

impl IrqLine {
    /// A line whose eventfd is connected by `connect`, which runs on the thread that raises the first interrupt.
    ///
    /// # Example
    /// ```
    /// use mini_vmm::irq::IrqLine;
    ///
    /// let line = IrqLine::new(|_event| Err(std::io::Error::other("no such pin")));
    /// assert_eq!(line.raise().unwrap_err().to_string(), "no such pin");
    /// ```
    pub fn new(connect: impl Fn(&EventFd) -> io::Result<()> + Send + Sync + 'static) -> Self {
        IrqLine(Arc::new(Line {
            connect: Box::new(connect),
            event: OnceLock::new(),
        }))
    }

    /// A line whose interrupts are lost.
    pub fn unconnected() -> Self {
        IrqLine::new(|_| Ok(()))
    }

    /// Raises the interrupt.
    ///
    /// # Errors
    /// When the process has no file descriptor left for the eventfd, or it can't be connected.
    pub fn raise(&self) -> io::Result<()> {
        self.event()?.write(1)
    }

    /// The eventfd, connected to the interrupt.
    ///
    /// # Errors
    /// As for [`raise`](Self::raise).
    pub fn event(&self) -> io::Result<&EventFd> {
        match self.0.event.get() {
            Some(event) => Ok(event),
            None => self.connected(),
        }
    }

    #[cold]
    fn connected(&self) -> io::Result<&EventFd> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        (self.0.connect)(&event)?;
        // If two threads race, the second eventfd is closed, and KVM disconnects it.
        Ok(self.0.event.get_or_init(|| event))
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IrqLine").field(&self.0.event).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_line_is_connected_once_and_late() {
        let connections = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&connections);
        let line = IrqLine::new(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let same = line.clone();
        assert_eq!(connections.load(Ordering::Relaxed), 0);
        for _ in 0..3 {
            line.raise().unwrap();
            same.raise().unwrap();
        }
        assert_eq!(connections.load(Ordering::Relaxed), 1);
        assert_eq!(same.event().unwrap().read().unwrap(), 6);
    }

    #[test]
    fn a_connection_that_failed_is_tried_again() {
        let attempts = AtomicU32::new(0);
        let line = IrqLine::new(move |_| match attempts.fetch_add(1, Ordering::Relaxed) {
            0 => Err(io::Error::other("not yet")),
            _ => Ok(()),
        });
        line.raise().unwrap_err();
        line.raise().unwrap();
        assert_eq!(line.event().unwrap().read().unwrap(), 1);
    }
}
