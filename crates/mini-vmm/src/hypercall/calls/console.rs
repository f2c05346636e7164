// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `VMM_HC_CONSOLE_WRITE`: writes many bytes to the serial console in one exit.

use para_abi::KvmErrno;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::Answer;

/// The most bytes that one call writes. They are copied to the vCPU thread's stack.
pub const CONSOLE_WRITE_MAX: u64 = 4096;

/// Takes the guest's output without blocking.
pub type ConsoleSink = Box<dyn Fn(&[u8]) + Send + Sync>;

/// The handler. Without a console (`--serial off`) there is no handler, and the number is unknown.
pub(super) struct ConsoleCalls<M> {
    pub(super) memory: M,
    pub(super) sink: ConsoleSink,
}

impl<M: GuestMemoryBackend> ConsoleCalls<M> {
    /// Writes bytes of guest memory to the console, all of them or none.
    pub(super) fn write(&self, args: &[u64; 6]) -> Answer {
        let [gpa, length, ..] = *args;
        if length > CONSOLE_WRITE_MAX {
            return Err(KvmErrno::KVM_E2BIG);
        }
        let mut buffer = [0; CONSOLE_WRITE_MAX as usize];
        // Copied once, since the guest may change it meanwhile.
        let bytes = &mut buffer[..length as usize];
        self.memory
            .read_slice(bytes, GuestAddress(gpa))
            .map_err(|_| KvmErrno::KVM_EFAULT)?;
        (self.sink)(bytes);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use vm_memory::GuestMemoryMmap;

    use super::*;

    type Sink = Arc<Mutex<Vec<u8>>>;

    /// RAM from 0x1000 to 0x4000 in two regions, filled with counting bytes.
    fn calls(sink: &Sink) -> ConsoleCalls<GuestMemoryMmap> {
        let ranges = [
            (GuestAddress(0x1000), 0x1000),
            (GuestAddress(0x2000), 0x2000),
        ];
        let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let bytes: Vec<u8> = (0..0x3000u32).map(|i| (i % 251) as u8).collect();
        memory.write_slice(&bytes, GuestAddress(0x1000)).unwrap();
        let sink = Arc::clone(sink);
        ConsoleCalls {
            memory,
            sink: Box::new(move |bytes| sink.lock().unwrap().extend_from_slice(bytes)),
        }
    }

    #[test]
    fn every_byte_is_passed_on_as_it_is() {
        let sink = Sink::default();
        let calls = calls(&sink);
        for (gpa, length) in [(0x1000, 251), (0x1f80, 0x100), (0x3000, 4096), (0x3fff, 1)] {
            assert_eq!(calls.write(&[gpa, length, 9, 9, 9, 9]), Ok(length));
            let expected: Vec<u8> = (gpa - 0x1000..gpa - 0x1000 + length)
                .map(|i| (i % 251) as u8)
                .collect();
            assert_eq!(std::mem::take(&mut *sink.lock().unwrap()), expected);
        }
    }

    #[test]
    fn nothing_is_passed_on_of_what_is_refused() {
        let sink = Sink::default();
        let calls = calls(&sink);
        for (gpa, length, errno) in [
            (0x1000, 4097, KvmErrno::KVM_E2BIG),
            (0x1000, u64::MAX, KvmErrno::KVM_E2BIG),
            (0x1000, 1 << 32, KvmErrno::KVM_E2BIG),
            (0xfff, 2, KvmErrno::KVM_EFAULT),
            (0x3fff, 2, KvmErrno::KVM_EFAULT),
            (0x4000, 1, KvmErrno::KVM_EFAULT),
            (u64::MAX, 1, KvmErrno::KVM_EFAULT),
            (u64::MAX, 4096, KvmErrno::KVM_EFAULT),
        ] {
            let answer = calls.write(&[gpa, length, 0, 0, 0, 0]);
            assert_eq!(answer, Err(errno), "{length:#x} bytes at {gpa:#x}");
        }
        assert_eq!(*sink.lock().unwrap(), b"");
    }
}
