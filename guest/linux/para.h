/* SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause */
/* Copyright 2026 The mini-vmm developers. */

/*
 * Hypercalls for other modules, through the stub that the host patched at the
 * registration through MSR 0x87655678. The result is the call's: 0 or more, or
 * a negated PARA_CALL_* of para_abi.h.
 */
#ifndef PARA_H
#define PARA_H

#include <linux/types.h>

/* Whether a host patched the stub, so that calls leave the guest. */
bool para_is_live(void);

/*
 * Makes call @nr with KVM's convention: RAX, and RBX RCX RDX RSI. Callable in
 * any context. Without a host it returns -PARA_CALL_ENOSYS.
 */
long para_hypercall(unsigned long nr, unsigned long a0, unsigned long a1,
		    unsigned long a2, unsigned long a3);

#endif /* PARA_H */
