// Copyright 2026 The mini-vmm developers.
// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The C library's allocator.
#![allow(unsafe_code)]

/// Makes all threads allocate from one heap: threads here allocate next to nothing, and one heap each would
/// cost four system calls and two pages per thread. Without effect on other C libraries than GNU's.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes two integers, and may come at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
