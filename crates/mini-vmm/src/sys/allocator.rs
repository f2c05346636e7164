// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The C library's allocator.
#![allow(unsafe_code)]

/// Makes all threads share one heap. They allocate almost nothing, and a separate heap would cost four system calls and
/// two pages per thread. It would also read a file of /proc when it shrinks, which a sealed machine must not. Only GNU's C
/// library needs this; it has no effect on others. Call it before other threads allocate.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes two integers, and may be made at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
