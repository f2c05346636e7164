/* SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause */
/* Copyright 2026 The mini-vmm developers. */

/* The file /sys/kernel/para/snapshot, for para_main.c. */
#ifndef PARA_SNAPSHOT_H
#define PARA_SNAPSHOT_H

#include <linux/kobject.h>
#include <linux/sysfs.h>

extern struct kobj_attribute para_snapshot_attr;

/* Looks for the machine's generation ID. */
void para_snapshot_init(void);
void para_snapshot_exit(void);

#endif /* PARA_SNAPSHOT_H */
