// SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
/*
 * Copyright 2026 The mini-vmm developers.
 *
 * Asks the host for a snapshot of this machine, which goes on as the original
 * and in clones. A clone's program returns only after the kernel's random
 * numbers have been reseeded.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/acpi.h>
#include <linux/completion.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/ktime.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/random.h>

#include "para_abi.h"
#include "para.h"
#include "para_snapshot.h"

/* Linux's name of the generation ID's device, and its size in bytes. */
#define PARA_GENERATION_HID	"VMGENCTR"
#define PARA_GENERATION_SIZE	16

/* How long the kernel's driver of the generation ID may take. */
#define PARA_FORK_PATIENCE	(10 * HZ)

static const u8 *para_generation;	/* NULL without ACPI */
static DEFINE_MUTEX(para_snapshot_lock);
static long para_number;		/* of this clone; 0 in the original */
static DECLARE_COMPLETION(para_forked);

/* After the kernel's own driver has reseeded, if it has one. */
static int para_on_fork(struct notifier_block *nb, unsigned long event, void *p)
{
	complete(&para_forked);
	return NOTIFY_DONE;
}

static struct notifier_block para_fork_nb = {
	.notifier_call = para_on_fork,
};

static int para_errno(long answer)
{
	switch (-answer) {
	case PARA_CALL_EAGAIN:
		return -EAGAIN;
	case PARA_CALL_E2BIG:
		return -ENOSPC;
	case PARA_CALL_EIO:
		return -EIO;
	default:
		return -EOPNOTSUPP;
	}
}

/*
 * Mixes in the generation ID, which no other clone has, and makes the kernel
 * derive new keys from it at once. It exports no function for that, so ask as
 * programs do.
 */
static long para_reseed(void)
{
	struct file *file;
	long error;

	if (para_generation)
		add_device_randomness(para_generation, PARA_GENERATION_SIZE);
	add_device_randomness(&para_number, sizeof(para_number));
	file = filp_open("/dev/urandom", O_RDONLY, 0);
	if (IS_ERR(file))
		return PTR_ERR(file);
	error = vfs_ioctl(file, RNDRESEEDCRNG, 0);
	fput(file);
	return error;
}

/* The clone number @number, before its program goes on. */
static long para_become(long number)
{
	u64 start = ktime_get_ns(), reseeded;
	long error;

	para_number = number;
	error = para_reseed();
	if (error) {
		pr_err("clone %ld has the random numbers of others: error %ld\n",
		       number, error);
		return error;
	}
	reseeded = ktime_get_ns() - start;
	if (!IS_ENABLED(CONFIG_VMGENID) || !para_generation) {
		pr_info("clone %ld: reseeded after %llu ns\n", number,
			reseeded);
		return 0;
	}
	/* Others may also want to know of a fork: keys of networks, for one. */
	if (wait_for_completion_timeout(&para_forked, PARA_FORK_PATIENCE))
		pr_info("clone %ld: reseeded after %llu ns, by the generation ID's driver after %llu ns\n",
			number, reseeded, ktime_get_ns() - start);
	else
		pr_warn("clone %ld: the generation ID's driver is late\n",
			number);
	return 0;
}

static ssize_t snapshot_store(struct kobject *kobj,
			      struct kobj_attribute *attr, const char *buf,
			      size_t count)
{
	long answer, error = 0;

	mutex_lock(&para_snapshot_lock);
	reinit_completion(&para_forked);
	answer = para_hypercall(VMM_HC_SNAPSHOT, 0, 0, 0, 0);
	if (answer < 0)
		error = para_errno(answer);
	else if (answer > 0)
		error = para_become(answer);
	mutex_unlock(&para_snapshot_lock);
	return error ? error : count;
}

static ssize_t snapshot_show(struct kobject *kobj, struct kobj_attribute *attr,
			     char *buf)
{
	return sysfs_emit(buf, "%ld\n", READ_ONCE(para_number));
}

struct kobj_attribute para_snapshot_attr =
	__ATTR(snapshot, 0600, snapshot_show, snapshot_store);

static acpi_status para_take(acpi_handle handle, u32 level, void *context,
			     void **result)
{
	*(acpi_handle *)context = handle;
	return AE_CTRL_TERMINATE;
}

/* The address that a package of two halves has; 0 if it is none. */
static phys_addr_t para_address(acpi_handle handle)
{
	struct acpi_buffer buffer = { ACPI_ALLOCATE_BUFFER, NULL };
	union acpi_object *package, *halves;
	phys_addr_t address = 0;

	if (ACPI_FAILURE(acpi_evaluate_object(handle, "ADDR", NULL, &buffer)))
		return 0;
	package = buffer.pointer;
	if (package->type == ACPI_TYPE_PACKAGE && package->package.count == 2) {
		halves = package->package.elements;
		if (halves[0].type == ACPI_TYPE_INTEGER &&
		    halves[1].type == ACPI_TYPE_INTEGER)
			address = halves[0].integer.value |
				  halves[1].integer.value << 32;
	}
	ACPI_FREE(package);
	return address;
}

void para_snapshot_init(void)
{
	acpi_handle handle = NULL;
	phys_addr_t address;

	register_random_vmfork_notifier(&para_fork_nb);
	if (acpi_disabled)
		return;
	acpi_get_devices(PARA_GENERATION_HID, para_take, &handle, NULL);
	address = handle ? para_address(handle) : 0;
	if (address)
		para_generation = memremap(address, PARA_GENERATION_SIZE,
					   MEMREMAP_WB);
}

void para_snapshot_exit(void)
{
	unregister_random_vmfork_notifier(&para_fork_nb);
	if (para_generation)
		memunmap((void *)para_generation);
	para_generation = NULL;
}
