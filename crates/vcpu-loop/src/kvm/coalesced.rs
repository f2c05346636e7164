// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Coalesced writes. The guest writes without an exit to ranges that the VMM registers (`KVM_REGISTER_COALESCED_MMIO`),
//! and KVM keeps the writes in a ring until they are drained.
//!
//! The VM has one ring, which each vCPU maps after its run page. A device must get a write before the next access of
//! the same vCPU, whichever vCPU's thread drains it. So a thread that drains holds a lock until the last write is
//! delivered, and a write leaves the ring only after delivery. If a vCPU finds the ring empty, all of its writes were
//! delivered.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::Cap;

use super::KvmVcpu;
use crate::exit::{CoalescedWrite, Drain};
use crate::sys::run_page::{RING_PAGE, Ring};

/// The ring of coalesced writes of one VM.
#[derive(Debug)]
pub struct CoalescedRing {
    ring: Ring,
    /// Held while draining.
    draining: Mutex<()>,
}

impl CoalescedRing {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.ring.oldest().is_none()
    }

    /// Drops the writes in the ring. Call it before a restore, after all vCPUs were
    /// [abandoned](crate::SaveVcpu::abandon): restored devices must not get the old writes.
    pub fn discard(&self) {
        self.drain(&mut |_| {});
    }
}

/// Removes a write from the ring when it was delivered, even if the device panicked.
struct Delivering<'a>(&'a Ring);

impl Drop for Delivering<'_> {
    fn drop(&mut self) {
        self.0.advance();
    }
}

impl Drain for CoalescedRing {
    fn drain(&self, deliver: &mut dyn FnMut(CoalescedWrite<'_>)) {
        let _lock = self.draining.lock().unwrap_or_else(PoisonError::into_inner);
        // Bounded, because other vCPUs may keep adding writes.
        for _ in 0..Ring::SLOTS {
            let Some(entry) = self.ring.oldest().map(|slot| self.ring.entry(slot)) else {
                return;
            };
            let _delivering = Delivering(&self.ring);
            let data = &entry.data[..entry.data.len().min(entry.len as usize)];
            deliver(match entry.is_port {
                false => CoalescedWrite::Mmio {
                    addr: entry.address,
                    data,
                },
                true => CoalescedWrite::Pio {
                    port: entry.address as u16,
                    data: &data[..data.len().min(4)],
                },
            });
        }
    }
}

/// A vCPU's access to the ring.
#[derive(Default)]
pub(super) struct Coalesced {
    ring: Option<Arc<CoalescedRing>>,
    /// The result of `KVM_RUN`, while the writes before its exit are delivered.
    held: Option<io::Result<()>>,
}

impl Coalesced {
    #[inline]
    pub(super) fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// The result of the `KVM_RUN` whose exit is held back, if any.
    pub(super) fn take_held(&mut self) -> Option<io::Result<()>> {
        self.held.take()
    }

    /// The result of `KVM_RUN`, or `None` if there are writes to deliver first.
    ///
    /// One drain delivers all writes from before the exit. Writes that other vCPUs add meanwhile wait for the next
    /// exit: a vCPU that keeps writing must not hold up this one.
    pub(super) fn next(
        &mut self,
        enter: impl FnOnce() -> io::Result<()>,
    ) -> Option<io::Result<()>> {
        if let Some(entered) = self.held.take() {
            return Some(entered);
        }
        let entered = enter();
        match self.ring.as_ref().is_some_and(|ring| !ring.is_empty()) {
            false => Some(entered),
            true => {
                self.held = Some(entered);
                None
            }
        }
    }
}

impl Drain for Coalesced {
    fn drain(&self, deliver: &mut dyn FnMut(CoalescedWrite<'_>)) {
        if let Some(ring) = &self.ring {
            ring.drain(deliver);
        }
    }
}

impl KvmVcpu {
    /// The VM's ring of coalesced writes, for all of its vCPUs. `None` if this KVM has none.
    ///
    /// Call it on one vCPU only: all vCPUs must share the ring's lock, which keeps the order.
    pub fn coalesced_ring(&self) -> Option<Arc<CoalescedRing>> {
        // The capability's value is the ring's page number.
        let page = self.host.kvm.check_extension_int(Cap::CoalescedMmio);
        let ring = (usize::try_from(page) == Ok(RING_PAGE)).then(|| self.page.ring())??;
        Some(Arc::new(CoalescedRing {
            ring,
            draining: Mutex::new(()),
        }))
    }

    /// Has the vCPU deliver coalesced writes, as an [`Exit::Coalesced`](crate::Exit::Coalesced) before the exit at
    /// which they are found. Without a ring, entries cost nothing more.
    ///
    /// Register ranges with `VmFd::register_coalesced_mmio`. A write stays in the ring until any vCPU leaves the guest.
    /// While one vCPU delivers, others wait for it, so a device in such a range must not wait for a vCPU.
    #[must_use]
    pub fn with_coalesced_ring(mut self, ring: Arc<CoalescedRing>) -> Self {
        self.coalesced.ring = Some(ring);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use vmm_sys_util::tempfile::TempFile;

    use super::*;
    use crate::dispatch::{Access, Flow, Unclaimed, dispatch};
    use crate::exit::{CoalescedWrites, Exit};
    use crate::script::{Call, RecordingIo};
    use crate::sys::run_page::RunPage;
    use crate::vcpu::{Next, VcpuId};

    const RING: u64 = 2 * 4096;

    /// A ring in a file, which the test fills as KVM does.
    fn ring() -> (File, CoalescedRing) {
        let file = TempFile::new().unwrap().into_file();
        file.set_len(RING + 4096).unwrap();
        let page = RunPage::map(&file, RING as usize + 4096).unwrap();
        let ring = page.ring().unwrap();
        let draining = Mutex::new(());
        (file, CoalescedRing { ring, draining })
    }

    fn indices(file: &File, first: u32, last: u32) {
        file.write_all_at(&first.to_le_bytes(), RING).unwrap();
        file.write_all_at(&last.to_le_bytes(), RING + 4).unwrap();
    }

    fn entry(file: &File, slot: u64, address: u64, len: u32, is_port: u32) {
        let at = RING + 8 + slot * 24;
        file.write_all_at(&address.to_le_bytes(), at).unwrap();
        file.write_all_at(&len.to_le_bytes(), at + 8).unwrap();
        file.write_all_at(&is_port.to_le_bytes(), at + 12).unwrap();
        file.write_all_at(&[1, 2, 3, 4, 5, 6, 7, 8], at + 16)
            .unwrap();
    }

    fn drained(ring: &CoalescedRing) -> Vec<String> {
        let mut writes = Vec::new();
        ring.drain(&mut |write| writes.push(format!("{write:?}")));
        writes
    }

    #[test]
    fn writes_come_in_order_across_the_end_of_the_ring() {
        assert_eq!(Ring::SLOTS, 170);
        let (file, ring) = ring();
        assert!(ring.is_empty());
        entry(&file, 169, 0xa_0000, 4, 0);
        entry(&file, 0, 0x44, 2, 1);
        // Longer than an entry can hold.
        entry(&file, 1, 0xa_0008, 9, 0);
        entry(&file, 2, 0x44, 9, 1);
        indices(&file, 169, 3);
        assert!(!ring.is_empty());
        let expected = [
            "Mmio { addr: 655360, data: [1, 2, 3, 4] }",
            "Pio { port: 68, data: [1, 2] }",
            "Mmio { addr: 655368, data: [1, 2, 3, 4, 5, 6, 7, 8] }",
            "Pio { port: 68, data: [1, 2, 3, 4] }",
        ];
        assert_eq!(drained(&ring), expected);
        assert!(ring.is_empty() && drained(&ring).is_empty());
    }

    #[test]
    fn devices_get_them_as_ordinary_writes() {
        let (file, ring) = ring();
        entry(&file, 0, 0xa_0000, 2, 0);
        entry(&file, 1, 0x44, 1, 1);
        let calls = [
            Call::MmioWrite(0xa_0000, vec![1, 2]),
            Call::PioWrite(0x44, vec![1]),
        ];
        for (next, after) in [
            (Next::Continue, Flow::Continue),
            (Next::Pause, Flow::Pause),
            (Next::Unclaimed, Flow::Continue),
        ] {
            indices(&file, 0, 2);
            // The first one decides.
            let mut first = Some(next);
            let mut io = RecordingIo::new(0, move |_| first.take().unwrap_or(Next::Continue));
            let unclaimed = Unclaimed::default();
            let exit = Exit::Coalesced(CoalescedWrites(&ring));
            assert!(exit.needs_completion());
            assert_eq!(dispatch(exit, &mut io, VcpuId(0), &unclaimed), after);
            assert_eq!(io.calls().get(), calls);
            let counted = u64::from(next == Next::Unclaimed);
            assert_eq!(unclaimed.count(Access::MmioWrite), counted);
        }
    }

    #[test]
    fn an_exit_waits_once_for_the_writes_before_it() {
        let (file, ring) = ring();
        let mut vcpu = Coalesced {
            ring: Some(Arc::new(ring)),
            held: None,
        };
        assert!(vcpu.next(|| Ok(())).is_some(), "nothing to deliver");
        indices(&file, 0, 1);
        assert!(vcpu.next(|| Ok(())).is_none());
        vcpu.drain(&mut |_| {});
        indices(&file, 1, 2);
        let held = vcpu.next(|| unreachable!("the exit was made already"));
        assert!(held.is_some(), "a peer's write came later");
        assert!(vcpu.next(|| Ok(())).is_none(), "it comes before the next");
    }

    #[test]
    fn a_ring_with_invalid_indices_is_empty() {
        let (file, ring) = ring();
        for (first, last) in [(170, 0), (0, 170), (u32::MAX, 1)] {
            indices(&file, first, last);
            assert!(ring.is_empty() && drained(&ring).is_empty());
        }
    }

    #[test]
    fn a_write_is_in_the_ring_until_it_is_delivered_and_then_never_again() {
        let (file, ring) = ring();
        for slot in 0..2 {
            entry(&file, slot, slot, 1, 1);
        }
        indices(&file, 0, 2);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            ring.drain(&mut |_| {
                assert!(!ring.is_empty());
                panic!("a device");
            });
        }));
        assert!(panicked.is_err());
        assert_eq!(drained(&ring), ["Pio { port: 1, data: [1] }"]);
        indices(&file, 0, 2);
        ring.discard();
        assert!(ring.is_empty());
    }
}
