// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memories with special properties, and helpers to fill and read them.

use std::cell::RefCell;
use std::ops::Range;

use hypercall_patch::{PioPort, Stub};
use para_abi::{PARA_STATE_PAYLOAD, ParaStatePayload};
use para_msr::Registration;
use para_msr::para::{FaultReason, Refusal};
use vm_memory::bitmap::{BS, Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    GuestMemoryRegion, Permissions,
};

pub const PAGE: u64 = 0x1000;
pub const SITE: u64 = 0x2010;
pub const RAM: u64 = 0x8000;
pub const PIO: Stub = Stub::Pio(PioPort::DEFAULT);
pub const EINVAL: u32 = 0xffff_ffff;
pub const STUBS: [Stub; 3] = [Stub::Vmx, Stub::Svm, PIO];

/// Several regions of RAM, filled with a pattern.
pub fn memory(ranges: &[(u64, usize)]) -> GuestMemoryMmap {
    let ranges: Vec<_> = ranges
        .iter()
        .map(|&(start, size)| (GuestAddress(start), size))
        .collect();
    let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
    fill(&memory);
    memory
}

/// One region of [`RAM`] bytes at 0, with a guest that is ready to register.
pub fn ready() -> GuestMemoryMmap {
    let memory = memory(&[(0, RAM as usize)]);
    put(&memory, PAGE, &ParaStatePayload::new(SITE));
    memory
}

fn fill<B: NewBitmap + 'static>(memory: &GuestMemoryMmap<B>) {
    for region in memory.iter() {
        let bytes: Vec<u8> = (0..region.len())
            .map(|at| (at % 251) as u8 ^ 0x90)
            .collect();
        memory.write_slice(&bytes, region.start_addr()).unwrap();
    }
}

pub fn put<M: GuestMemory>(memory: &M, gpa: u64, payload: &ParaStatePayload) {
    memory
        .write_slice(&payload.to_bytes(), GuestAddress(gpa))
        .unwrap();
}

pub fn get<M: GuestMemory>(memory: &M, gpa: u64) -> ParaStatePayload {
    ParaStatePayload::from_bytes(&bytes::<PARA_STATE_PAYLOAD, _>(memory, gpa))
}

pub fn bytes<const N: usize, M: GuestMemory>(memory: &M, gpa: u64) -> [u8; N] {
    let mut bytes = [0; N];
    memory.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
    bytes
}

/// All bytes of a memory, to compare later.
pub fn image(memory: &GuestMemoryMmap<impl Bitmap + 'static>) -> Vec<(u64, Vec<u8>)> {
    memory
        .iter()
        .map(|region| {
            let mut bytes = vec![0; region.len() as usize];
            memory.read_slice(&mut bytes, region.start_addr()).unwrap();
            (region.start_addr().0, bytes)
        })
        .collect()
}

/// Where two images differ.
pub fn changed(before: &[(u64, Vec<u8>)], after: &[(u64, Vec<u8>)]) -> Vec<u64> {
    let mut changed = Vec::new();
    for ((start, before), (_, after)) in before.iter().zip(after) {
        let differ = before
            .iter()
            .zip(after)
            .enumerate()
            .filter(|(_, (b, a))| b != a);
        changed.extend(differ.map(|(at, _)| start + at as u64));
    }
    changed
}

pub fn refusal(event: Registration) -> Refusal {
    match event {
        Registration::Refused(refused) => refused.reason,
        other => panic!("not refused: {other:?}"),
    }
}

pub fn fault(event: Registration) -> FaultReason {
    match event {
        Registration::Fault(fault) => fault.reason,
        other => panic!("no fault: {other:?}"),
    }
}

/// RAM with read-only parts (like ROM) and inaccessible parts (like MMIO and private pages).
#[derive(Clone, Debug)]
pub struct Guarded {
    pub ram: GuestMemoryMmap,
    /// Address ranges and their permissions.
    pub limits: Vec<(Range<u64>, Permissions)>,
}

impl Guarded {
    fn allows(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        let end = addr.0.saturating_add(count as u64);
        self.limits
            .iter()
            .filter(|(range, _)| addr.0 < range.end && range.start < end)
            .all(|(_, allowed)| allowed.allow(access))
    }
}

impl GuestMemory for Guarded {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.allows(addr, count, access) && GuestMemoryBackend::check_range(&self.ram, addr, count)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, ()>>, GuestMemoryError> {
        if !self.allows(addr, count, access) {
            return Err(GuestMemoryError::InvalidGuestAddress(addr));
        }
        Ok(GuestMemoryBackend::get_slices(&self.ram, addr, count))
    }
}

type Hook = Box<dyn FnMut(u64, usize)>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Calls `hook` with address and length after every store of this thread to a [`Spied`] memory, to
/// simulate what another vCPU could see or do at that moment. Stores by the hook itself don't call it.
pub fn after_each_store(hook: impl FnMut(u64, usize) + 'static) {
    HOOK.set(Some(Box::new(hook)));
}

/// A dirty bitmap that reports each store as it happens.
#[derive(Clone, Debug, Default)]
pub struct Spy(u64);

/// One region of RAM at 0, so that offsets are addresses.
pub type Spied = GuestMemoryMmap<Spy>;

pub fn spied() -> Spied {
    HOOK.set(None);
    let memory = Spied::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
    fill(&memory);
    put(&memory, PAGE, &ParaStatePayload::new(SITE));
    memory
}

impl WithBitmapSlice<'_> for Spy {
    type S = Spy;
}

impl BitmapSlice for Spy {}

impl Bitmap for Spy {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if let Some(mut hook) = HOOK.take() {
            hook(self.0 + offset as u64, len);
            HOOK.set(Some(hook));
        }
    }

    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Spy {
        Spy(self.0 + offset as u64)
    }
}

impl NewBitmap for Spy {
    fn with_len(_: usize) -> Self {
        Spy(0)
    }
}
