// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Message-signalled interrupts: an address and data, as a device writes them to memory.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use kvm_bindings::kvm_msi;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::routes::Routes;
use crate::sync::lock;

/// A message (Intel SDM volume 3A, "Message Signalled Interrupts"). Values from the guest need no check: KVM checks
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msi {
    /// The destination: which local APICs get it.
    pub address: u64,
    /// Vector, delivery mode and trigger mode.
    pub data: u32,
}

impl From<Msi> for kvm_msi {
    fn from(msi: Msi) -> Self {
        kvm_msi {
            address_lo: msi.address as u32,
            address_hi: (msi.address >> 32) as u32,
            data: msi.data,
            ..Default::default()
        }
    }
}

type Deliver = dyn Fn(Msi) -> io::Result<bool> + Send + Sync;

/// Sends messages from this process, without a file descriptor or a route. Clones are the same sender.
#[derive(Clone)]
pub struct MsiSender(Arc<Deliver>);

impl MsiSender {
    /// A sender whose messages are delivered by `send`, which returns whether a local APIC accepted the message.
    ///
    /// # Example
    /// ```
    /// use mini_vmm::irq::{Msi, MsiSender};
    ///
    /// let sender = MsiSender::new(|msi| Ok(msi.data == 0x41));
    /// assert!(sender.signal(0xfee0_0000, 0x41)?);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new(send: impl Fn(Msi) -> io::Result<bool> + Send + Sync + 'static) -> Self {
        MsiSender(Arc::new(send))
    }

    /// Sends a message, and returns whether a local APIC accepted it. KVM accepts every delivery mode, also the "remote
    /// read" that wakes a vCPU from HLT. Takes no lock in this process.
    ///
    /// # Errors
    /// No local APIC has the address, or the machine is gone.
    pub fn signal(&self, address: u64, data: u32) -> io::Result<bool> {
        (self.0)(Msi { address, data })
    }
}

impl fmt::Debug for MsiSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsiSender").finish_non_exhaustive()
    }
}

/// Connects an eventfd to a GSI (`true`), or disconnects it.
type Plug = dyn Fn(&EventFd, u32, bool) -> io::Result<()> + Send + Sync;

/// A message that the kernel or another process (vhost, vhost-user) sends by writing an eventfd. KVM turns the write
/// into the message.
///
/// It starts disconnected, like a masked vector. A write meanwhile is kept, and delivered once at the next
/// [`connect`](Self::connect).
pub struct MsiLine {
    event: EventFd,
    plug: Box<Plug>,
    routes: Arc<Routes>,
    /// The GSI, while it is connected.
    gsi: Mutex<Option<u32>>,
}

impl MsiLine {
    pub(super) fn new(
        routes: Arc<Routes>,
        plug: impl Fn(&EventFd, u32, bool) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        Ok(MsiLine {
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            plug: Box::new(plug),
            routes,
            gsi: Mutex::new(None),
        })
    }

    /// Writing this sends the message.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    /// Connects it to this message, from now on.
    ///
    /// # Errors
    /// The machine has no free route, or the host refused to connect it. Nothing has changed then.
    pub fn connect(&self, address: u64, data: u32) -> io::Result<()> {
        let msi = Msi { address, data };
        let mut gsi = lock(&self.gsi);
        if let Some(gsi) = *gsi {
            return self.routes.replace(gsi, msi);
        }
        // KVM looks up the route when it gets the eventfd.
        let new = self.routes.add(msi)?;
        // On connecting, KVM delivers a pending write, but leaves the counter as it is.
        let was_written = self.event.read().is_ok();
        if let Err(error) = (self.plug)(&self.event, new, true) {
            self.routes.remove(new);
            self.keep(was_written);
            return Err(error);
        }
        *gsi = Some(new);
        self.keep(was_written);
        Ok(())
    }

    /// Disconnects it: from now on nothing is sent. Earlier writes are still delivered.
    ///
    /// # Errors
    /// The host refused to disconnect the eventfd. Nothing has changed then.
    pub fn disconnect(&self) -> io::Result<()> {
        let mut connected = lock(&self.gsi);
        if let Some(gsi) = *connected {
            (self.plug)(&self.event, gsi, false)?;
            self.routes.remove(gsi);
            *connected = None;
        }
        Ok(())
    }

    /// Writes back a write that was read.
    fn keep(&self, was_written: bool) {
        if was_written {
            // Fails only if the counter is full, and then it is pending anyway.
            let _ = self.event.write(1);
        }
    }
}

impl Drop for MsiLine {
    /// Disconnects it, since another process may keep the eventfd open for longer.
    fn drop(&mut self) {
        if let Err(error) = self.disconnect() {
            // Its route stays allocated, so that it can't raise another device's interrupt.
            log::debug!("an interrupt of another process stays connected: {error}");
        }
    }
}

impl fmt::Debug for MsiLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsiLine")
            .field("event", &self.event)
            .field("gsi", &self.gsi)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;
    use crate::layout::IOAPIC_PINS;

    const ADDRESS: u64 = 0xfee0_1000;

    #[test]
    fn a_message_has_both_halves_of_its_address() {
        let msi = Msi {
            address: 0x1_fee0_2004,
            data: 0xc041,
        };
        let kvm = kvm_msi::from(msi);
        assert_eq!((kvm.address_lo, kvm.address_hi), (0xfee0_2004, 1));
        assert_eq!((kvm.data, kvm.flags), (0xc041, 0));
    }

    /// The calls to KVM, in order, and whether it refuses the next eventfd.
    #[derive(Clone, Default)]
    struct Kvm {
        seen: Arc<Mutex<Vec<String>>>,
        refuses: Arc<AtomicBool>,
    }

    impl Kvm {
        fn line(&self) -> (MsiLine, Arc<Routes>) {
            let (seen, plugged) = (Arc::clone(&self.seen), self.clone());
            let routes = Arc::new(Routes::new(move |entries| {
                let messages = entries.len() - 40;
                lock(&seen).push(format!("routes {messages}"));
                Ok(())
            }));
            let line = MsiLine::new(Arc::clone(&routes), move |_, gsi, on| {
                let word = if on { "connect" } else { "disconnect" };
                lock(&plugged.seen).push(format!("{word} {gsi}"));
                match plugged.refuses.load(Relaxed) {
                    true => Err(io::Error::other("no")),
                    false => Ok(()),
                }
            });
            (line.unwrap(), routes)
        }

        fn seen(&self) -> Vec<String> {
            std::mem::take(&mut lock(&self.seen))
        }
    }

    #[test]
    fn the_route_comes_before_the_eventfd_and_goes_after_it() {
        let kvm = Kvm::default();
        let (line, routes) = kvm.line();
        assert_eq!(kvm.seen(), [""; 0], "nothing before it is connected");
        line.connect(ADDRESS, 0x41).unwrap();
        assert_eq!(kvm.seen(), ["routes 1", "connect 24"]);
        line.connect(ADDRESS, 0x42).unwrap();
        assert_eq!(kvm.seen(), ["routes 1"], "a change is one of the route");
        line.disconnect().unwrap();
        line.disconnect().unwrap();
        assert_eq!(kvm.seen(), ["disconnect 24"]);
        assert_eq!(routes.get(IOAPIC_PINS), None);
        line.connect(ADDRESS, 0x43).unwrap();
        drop(line);
        assert_eq!(kvm.seen(), ["routes 1", "connect 24", "disconnect 24"]);
        assert_eq!(routes.get(IOAPIC_PINS), None);
    }

    #[test]
    fn what_is_written_while_it_is_disconnected_is_written_again_once() {
        let (line, _routes) = Kvm::default().line();
        line.connect(ADDRESS, 0x41).unwrap();
        assert!(line.event().read().is_err());
        line.disconnect().unwrap();
        line.event().write(1).unwrap();
        line.event().write(1).unwrap();
        line.connect(ADDRESS, 0x41).unwrap();
        assert_eq!(line.event().read().unwrap(), 1);
    }

    #[test]
    fn a_refusal_leaves_it_as_it_was() {
        let kvm = Kvm::default();
        let (line, routes) = kvm.line();
        kvm.refuses.store(true, Relaxed);
        line.event().write(1).unwrap();
        line.connect(ADDRESS, 0x41).unwrap_err();
        assert_eq!(routes.get(IOAPIC_PINS), None);
        assert_eq!(line.event().read().unwrap(), 1);

        kvm.refuses.store(false, Relaxed);
        line.connect(ADDRESS, 0x41).unwrap();
        kvm.refuses.store(true, Relaxed);
        line.disconnect().unwrap_err();
        let data = routes.get(IOAPIC_PINS).map(|msi| msi.data);
        assert_eq!(data, Some(0x41));
    }
}
