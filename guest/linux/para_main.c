// SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
/*
 * Copyright 2026 The mini-vmm developers.
 *
 * Guest driver for the MSR based hypercall ABI of 2007.
 *
 * Each CPU registers a page with the host by WRMSR of 0x87655678. The host
 * answers in the page and replaces the first four bytes of a stub, which all
 * CPUs share, with an instruction that exits to it. See para_abi.h for the ABI
 * and README.md for the files in /sys/kernel/para.
 *
 * The ABI has no unregistration. The host accesses page and stub only while
 * the CPU executes the WRMSR, so both may be freed once no callback can
 * register again. The host keeps the two addresses until the machine is reset.
 * If the guest is saved and restored by another host after this module was
 * unloaded, that host reads the bytes at the old address of the stub. It
 * writes there only if it finds a stub.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpu.h>
#include <linux/cpufeature.h>
#include <linux/cpuhotplug.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/kobject.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/panic_notifier.h>
#include <linux/percpu.h>
#include <linux/sysfs.h>
#include <linux/vmalloc.h>
#include <asm/asm.h>
#include <asm/msr.h>

#include "para_abi.h"
#include "para.h"
#include "para_snapshot.h"
#include "stub.h"

/* Boot marks, which the VMM logs. */
#define PARA_MARK_LOADED	1
#define PARA_MARK_PANIC		0xdead

/* Calls in one series, and number of series; the fastest series counts. */
#define PARA_PING_CALLS		32
#define PARA_PING_RUNS		8

/* The POST code port: a write exits to the VMM and does nothing. */
#define PARA_BARE_PORT		0x80

static bool off;
module_param(off, bool, 0444);
MODULE_PARM_DESC(off, "Register nothing (default: N)");

static unsigned int guest_version = KVM_PARA_API_VERSION;
module_param(guest_version, uint, 0444);
MODULE_PARM_DESC(guest_version, "API version to register with (default: 1)");

static int panic_status = -1;
module_param(panic_status, int, 0444);
MODULE_PARM_DESC(panic_status,
		 "On panic, end the VM with this status, 0 to 255 (default: -1, only tell the VMM)");

enum para_status {
	PARA_OFF,		/* by parameter, or not in a virtual machine */
	PARA_NO_HOST,		/* no host handles the MSR */
	PARA_REFUSED,		/* the host refused */
	PARA_BAD_STUB,		/* registered, but the stub is unknown */
	PARA_LIVE,
};

static const char * const para_status_names[] = {
	[PARA_OFF] = "off",
	[PARA_NO_HOST] = "no host",
	[PARA_REFUSED] = "refused",
	[PARA_BAD_STUB] = "bad stub",
	[PARA_LIVE] = "live",
};

struct para_cpu {
	struct kvm_vcpu_para_state *state;
	enum para_abi_registration result;
	bool registered;
	unsigned int registrations;
};

static DEFINE_PER_CPU(struct para_cpu, para_cpus);
static enum para_status status = PARA_OFF;
static phys_addr_t stub_gpa;
static struct kobject *para_kobj;
static int para_cpuhp = -1;

PARA_STUB(para_stub);

static void para_read_stub(u8 bytes[PARA_STUB_LEN])
{
	int i;

	/* The host changes them without the compiler's knowledge. */
	for (i = 0; i < PARA_STUB_LEN; i++)
		bytes[i] = READ_ONCE(para_stub[i]);
}

static bool para_stub_is_pio(const u8 *bytes)
{
	return bytes[0] == 0xe6 && bytes[2] == 0xc3;
}

static bool para_stub_is_vendor(const u8 *bytes)
{
	return bytes[0] == 0x0f && bytes[1] == 0x01 &&
	       (bytes[2] == 0xc1 || bytes[2] == 0xd9) && bytes[3] == 0xc3;
}

static phys_addr_t para_stub_gpa(void)
{
	/* Modules are in the vmalloc area, which is not linearly mapped. */
	return page_to_phys(vmalloc_to_page(para_stub)) +
	       offset_in_page(para_stub);
}

bool para_is_live(void)
{
	return READ_ONCE(status) == PARA_LIVE;
}
EXPORT_SYMBOL_GPL(para_is_live);

static __always_inline long para_call(unsigned long nr, unsigned long a0,
				      unsigned long a1, unsigned long a2,
				      unsigned long a3)
{
	asm volatile("call para_stub"
		     : "+a" (nr), ASM_CALL_CONSTRAINT
		     : "b" (a0), "c" (a1), "d" (a2), "S" (a3)
		     : "memory", "cc");
	return nr;
}

long para_hypercall(unsigned long nr, unsigned long a0, unsigned long a1,
		    unsigned long a2, unsigned long a3)
{
	if (!para_is_live())
		return -PARA_CALL_ENOSYS;
	return para_call(nr, a0, a1, a2, a3);
}
EXPORT_SYMBOL_GPL(para_hypercall);

/* Registers the current CPU; hot-plug callbacks don't migrate. */
static int para_cpu_online(unsigned int cpu)
{
	struct para_cpu *pc = this_cpu_ptr(&para_cpus);
	u64 gpa = virt_to_phys(pc->state);
	int fault;

	para_abi_preset(pc->state, stub_gpa);
	pc->state->guest_version = guest_version;
	fault = wrmsr_safe(MSR_KVM_API_MAGIC, lower_32_bits(gpa),
			   upper_32_bits(gpa));
	pc->result = para_abi_classify(pc->state, fault);
	pc->registered = pc->result == PARA_ABI_REGISTERED;
	if (pc->registered)
		pc->registrations++;
	pr_debug("cpu %u: page %#llx, result %d\n", cpu, gpa, pc->result);
	/* An error here would keep the CPU offline. */
	return 0;
}

/* The host can't be told: it keeps two addresses that it doesn't use. */
static int para_cpu_offline(unsigned int cpu)
{
	this_cpu_ptr(&para_cpus)->registered = false;
	return 0;
}

static unsigned int para_registered(struct cpumask *mask)
{
	unsigned int cpu, count = 0;

	for_each_online_cpu(cpu) {
		if (!per_cpu(para_cpus, cpu).registered)
			continue;
		count++;
		if (mask)
			cpumask_set_cpu(cpu, mask);
	}
	return count;
}

/* The first CPU that a host answered; NULL without a host. */
static struct para_cpu *para_answered(void)
{
	unsigned int cpu;

	for_each_possible_cpu(cpu) {
		struct para_cpu *pc = per_cpu_ptr(&para_cpus, cpu);

		if (pc->state && pc->state->host_version &&
		    pc->state->host_version != PARA_PRESET)
			return pc;
	}
	return NULL;
}

static const char *para_route(void)
{
	u8 bytes[PARA_STUB_LEN];

	if (!para_is_live())
		return "none";
	para_read_stub(bytes);
	if (para_stub_is_pio(bytes))
		return "pio";
	/* The other two have the same bytes; only forward answers this call. */
	return para_call(VMM_HC_NOP, 0, 0, 0, 0) == 0 ? "forward" : "vendor";
}

/* Nanoseconds per call of @once in the fastest series. */
static __always_inline u64 para_measure(void (*once)(void))
{
	u64 best = U64_MAX;
	int run, i;

	for (run = 0; run < PARA_PING_RUNS; run++) {
		u64 start, took;

		preempt_disable();
		start = ktime_get_ns();
		for (i = 0; i < PARA_PING_CALLS; i++)
			once();
		took = ktime_get_ns() - start;
		preempt_enable();
		best = min(best, took);
		cond_resched();
	}
	return best / PARA_PING_CALLS;
}

static void para_ping_once(void)
{
	para_call(KVM_HC_VAPIC_POLL_IRQ, 0, 0, 0, 0);
}

static void para_nop_once(void)
{
	para_call(VMM_HC_NOP, 0, 0, 0, 0);
}

static void para_port_once(void)
{
	outb(0, PARA_BARE_PORT);
}

#define PARA_SHOW(name, format, ...)					\
static ssize_t name##_show(struct kobject *kobj,			\
			   struct kobj_attribute *attr, char *buf)	\
{									\
	return sysfs_emit(buf, format "\n", __VA_ARGS__);		\
}									\
static struct kobj_attribute name##_attr = __ATTR_RO(name)

/* Like PARA_SHOW, for files that need a live stub. */
#define PARA_SHOW_LIVE(name, format, ...)				\
static ssize_t name##_show(struct kobject *kobj,			\
			   struct kobj_attribute *attr, char *buf)	\
{									\
	if (!para_is_live())						\
		return -ENODEV;						\
	return sysfs_emit(buf, format "\n", __VA_ARGS__);		\
}									\
static struct kobj_attribute name##_attr = __ATTR(name, 0400,		\
						  name##_show, NULL)

PARA_SHOW(status, "%s", para_status_names[READ_ONCE(status)]);
PARA_SHOW(api_version, "%u", guest_version);
PARA_SHOW(route, "%s", para_route());
PARA_SHOW_LIVE(ping, "%ld", para_hypercall(KVM_HC_VAPIC_POLL_IRQ, 0, 0, 0, 0));
PARA_SHOW_LIVE(nop, "%ld", para_hypercall(VMM_HC_NOP, 0, 0, 0, 0));
PARA_SHOW_LIVE(para_ping, "%llu", para_measure(para_ping_once));
PARA_SHOW_LIVE(nop_ns, "%llu", para_measure(para_nop_once));
PARA_SHOW_LIVE(port_ns, "%llu", para_measure(para_port_once));

static ssize_t host_version_show(struct kobject *kobj,
				 struct kobj_attribute *attr, char *buf)
{
	struct para_cpu *pc = para_answered();

	if (!pc)
		return sysfs_emit(buf, "none\n");
	return sysfs_emit(buf, "%u\n", pc->state->host_version);
}

static struct kobj_attribute host_version_attr = __ATTR_RO(host_version);

static ssize_t stub_show(struct kobject *kobj, struct kobj_attribute *attr,
			 char *buf)
{
	u8 bytes[PARA_STUB_LEN];

	para_read_stub(bytes);
	return sysfs_emit(buf, "%6ph\n", bytes);
}

static struct kobj_attribute stub_attr = __ATTR_RO(stub);

static ssize_t cpus_show(struct kobject *kobj, struct kobj_attribute *attr,
			 char *buf)
{
	cpumask_var_t mask;
	ssize_t length;

	if (!zalloc_cpumask_var(&mask, GFP_KERNEL))
		return -ENOMEM;
	cpus_read_lock();
	para_registered(mask);
	cpus_read_unlock();
	length = sysfs_emit(buf, "%*pbl\n", cpumask_pr_args(mask));
	free_cpumask_var(mask);
	return length;
}

static struct kobj_attribute cpus_attr = __ATTR_RO(cpus);

/* One line per CPU; a page has space for about 60. */
static ssize_t cpu_state_show(struct kobject *kobj,
			      struct kobj_attribute *attr, char *buf)
{
	unsigned int cpu;
	int at = 0;

	for_each_possible_cpu(cpu) {
		struct para_cpu *pc = per_cpu_ptr(&para_cpus, cpu);

		if (!pc->state)
			continue;
		at += sysfs_emit_at(buf, at,
				    "cpu%u %s registrations=%u page=%#llx ret=%#x\n",
				    cpu, pc->registered ? "registered" : "-",
				    pc->registrations,
				    (u64)virt_to_phys(pc->state),
				    pc->state->ret);
	}
	return at;
}

static struct kobj_attribute cpu_state_attr = __ATTR(cpu_state, 0400,
						     cpu_state_show, NULL);

static ssize_t exit_store(struct kobject *kobj, struct kobj_attribute *attr,
			  const char *buf, size_t count)
{
	long result;
	u8 code;
	int error = kstrtou8(buf, 0, &code);

	if (error)
		return error;
	result = para_hypercall(VMM_HC_EXIT, code, 0, 0, 0);
	pr_info("the VMM did not end the machine: %ld\n", result);
	return -EOPNOTSUPP;
}

static struct kobj_attribute exit_attr = __ATTR(exit, 0200, NULL, exit_store);

static struct attribute *para_attrs[] = {
	&status_attr.attr,
	&api_version_attr.attr,
	&host_version_attr.attr,
	&stub_attr.attr,
	&route_attr.attr,
	&cpus_attr.attr,
	&cpu_state_attr.attr,
	&ping_attr.attr,
	&nop_attr.attr,
	&para_ping_attr.attr,
	&nop_ns_attr.attr,
	&port_ns_attr.attr,
	&exit_attr.attr,
	&para_snapshot_attr.attr,
	NULL,
};

static const struct attribute_group para_group = {
	.attrs = para_attrs,
};

static int para_panic(struct notifier_block *nb, unsigned long event, void *p)
{
	para_hypercall(VMM_HC_BOOT_MARK, PARA_MARK_PANIC, 0, 0, 0);
	if (panic_status >= 0)
		para_hypercall(VMM_HC_EXIT, panic_status, 0, 0, 0);
	return NOTIFY_DONE;
}

static struct notifier_block para_panic_nb = {
	.notifier_call = para_panic,
	.priority = INT_MAX,
};

static void para_free_pages(void)
{
	unsigned int cpu;

	for_each_possible_cpu(cpu) {
		struct para_cpu *pc = per_cpu_ptr(&para_cpus, cpu);

		free_page((unsigned long)pc->state);
		pc->state = NULL;
	}
}

static int para_alloc_pages(void)
{
	unsigned int cpu;

	for_each_possible_cpu(cpu) {
		struct page *page;

		/* From any zone: WRMSR takes all 64 bits of the address. */
		page = alloc_pages_node(cpu_to_node(cpu),
					GFP_KERNEL | __GFP_ZERO, 0);
		if (!page) {
			para_free_pages();
			return -ENOMEM;
		}
		per_cpu_ptr(&para_cpus, cpu)->state = page_address(page);
	}
	return 0;
}

/* Logs the result of the registrations, and returns the status. */
static enum para_status para_judge(void)
{
	struct para_cpu *pc = para_answered();
	unsigned int count = para_registered(NULL);
	u8 bytes[PARA_STUB_LEN];

	if (!pc) {
		pr_info("no host answers MSR %#x: loaded without effect\n",
			MSR_KVM_API_MAGIC);
		return PARA_NO_HOST;
	}
	if (!count && guest_version > pc->state->host_version) {
		pr_warn("refused: the host has API version %u, this guest asks for %u\n",
			pc->state->host_version, guest_version);
		return PARA_REFUSED;
	}
	if (!count) {
		pr_warn("refused: the host does not patch a stub at %pa\n",
			&stub_gpa);
		return PARA_REFUSED;
	}
	para_read_stub(bytes);
	if (!para_stub_is_pio(bytes) && !para_stub_is_vendor(bytes)) {
		pr_err("the host wrote a stub that is unknown here: %6ph\n",
		       bytes);
		return PARA_BAD_STUB;
	}
	pr_info("%u of %u CPUs registered, host API version %u, stub %6ph\n",
		count, num_online_cpus(), pc->state->host_version, bytes);
	return PARA_LIVE;
}

static int para_register_all(void)
{
	int error;

	stub_gpa = para_stub_gpa();
	error = para_alloc_pages();
	if (error)
		return error;
	/* Runs on each CPU that is online, and on each that comes online later. */
	para_cpuhp = cpuhp_setup_state(CPUHP_AP_ONLINE_DYN, "para:online",
				       para_cpu_online, para_cpu_offline);
	if (para_cpuhp < 0) {
		para_free_pages();
		return para_cpuhp;
	}
	WRITE_ONCE(status, para_judge());
	if (!para_is_live()) {
		/* Without effect also for CPUs that come online later. */
		cpuhp_remove_state_nocalls(para_cpuhp);
		para_cpuhp = -1;
		return 0;
	}
	atomic_notifier_chain_register(&panic_notifier_list, &para_panic_nb);
	if (para_hypercall(VMM_HC_BOOT_MARK, PARA_MARK_LOADED, 0, 0, 0) == 0)
		pr_info("route %s: the VMM answers hypercalls\n", para_route());
	else
		pr_info("route %s: KVM answers hypercalls, the VMM does not\n",
			para_route());
	return 0;
}

static void para_unregister_all(void)
{
	if (para_is_live())
		atomic_notifier_chain_unregister(&panic_notifier_list,
						 &para_panic_nb);
	WRITE_ONCE(status, PARA_OFF);
	if (para_cpuhp >= 0)
		cpuhp_remove_state(para_cpuhp);
	para_free_pages();
}

static int __init para_init(void)
{
	int error;

	if (panic_status > 255) {
		pr_err("panic_status=%d is above 255\n", panic_status);
		return -EINVAL;
	}
	if (off) {
		pr_info("off by parameter: loaded without effect\n");
	} else if (!boot_cpu_has(X86_FEATURE_HYPERVISOR)) {
		pr_info("not in a virtual machine: loaded without effect\n");
	} else {
		error = para_register_all();
		if (error)
			return error;
	}
	para_snapshot_init();
	para_kobj = kobject_create_and_add("para", kernel_kobj);
	error = para_kobj ? sysfs_create_group(para_kobj, &para_group) :
			    -ENOMEM;
	if (error) {
		kobject_put(para_kobj);
		para_snapshot_exit();
		para_unregister_all();
	}
	return error;
}

static void __exit para_exit(void)
{
	sysfs_remove_group(para_kobj, &para_group);
	kobject_put(para_kobj);
	para_snapshot_exit();
	para_unregister_all();
}

module_init(para_init);
module_exit(para_exit);

MODULE_DESCRIPTION("Hypercalls by registration through MSR 0x87655678");
MODULE_AUTHOR("The mini-vmm developers");
MODULE_LICENSE("Dual BSD/GPL");
