// SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
/*
 * Copyright 2026 The mini-vmm developers.
 *
 * Misbehaves on purpose, and logs the result. It needs para.ko, whose
 * hypercalls it makes. Parameters choose what it does when it is loaded.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/completion.h>
#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/vmalloc.h>
#include <asm/asm.h>
#include <asm/cpufeature.h>
#include <asm/msr.h>
#include <asm/special_insns.h>

#include "para_abi.h"
#include "para.h"
#include "stub.h"

static unsigned int storm;
module_param(storm, uint, 0444);
MODULE_PARM_DESC(storm, "Total registrations, made while other CPUs call");

static unsigned int seconds = 60;
module_param(seconds, uint, 0444);
MODULE_PARM_DESC(seconds, "End the storm after this time (default: 60)");

static bool wrong;
module_param(wrong, bool, 0444);
MODULE_PARM_DESC(wrong, "Execute the other vendor's hypercall instruction");

static bool unregistered;
module_param(unregistered, bool, 0444);
MODULE_PARM_DESC(unregistered, "Write to port 0xf5 as a call would, without a registration");

/* Registrations between restores of the unpatched bytes. */
#define STORM_RESTORE 64

/* Registrations between two checks of the clock. */
#define STORM_SLICE 256

/* A separate stub, so that para.ko's is unchanged. */
PARA_STUB(storm_stub);

static const u8 unpatched[] = { PARA_STUB_BYTES };

struct storm_cpu {
	struct storm_cpu *all;
	unsigned int count;
	struct task_struct *task;
	struct completion done;
	unsigned int cpu;
	bool registers;		/* otherwise it calls */
	bool inside;		/* in a call */
	unsigned int rounds;
	unsigned long registered, refused, torn_pages;
	unsigned long called, not_yet, wrong_answers;
	long wrong_answer;	/* the last one */
	struct kvm_vcpu_para_state *state;
};

static u64 storm_gpa;
static u32 *storm_alias;	/* the stub's first four bytes, writable */
static bool storm_over;
static bool storm_restoring;
static ktime_t storm_end;

static long storm_call(void)
{
	unsigned long nr = KVM_HC_VAPIC_POLL_IRQ;

	asm volatile("call storm_stub"
		     : "+a" (nr), ASM_CALL_CONSTRAINT
		     : "b" (0), "c" (0), "d" (0), "S" (0)
		     : "memory", "cc");
	return nr;
}

static void storm_register(struct storm_cpu *me)
{
	u64 gpa = virt_to_phys(me->state);
	int fault;

	para_abi_preset(me->state, storm_gpa);
	fault = wrmsr_safe(MSR_KVM_API_MAGIC, lower_32_bits(gpa),
			   upper_32_bits(gpa));
	if (para_abi_classify(me->state, fault) != PARA_ABI_REGISTERED)
		me->refused++;
	else
		me->registered++;
	if (me->state->guest_version != KVM_PARA_API_VERSION ||
	    me->state->host_version != KVM_PARA_API_VERSION ||
	    me->state->size != PARA_STATE_SIZE ||
	    me->state->hypercall_gpa != storm_gpa)
		me->torn_pages++;
}

/*
 * Restores the unpatched bytes. No CPU may be in the stub meanwhile: between
 * the host's instructions, it would continue in the middle of the unpatched
 * one. The host's patch needs no such care, because byte 5 of the unpatched
 * stub is a return.
 */
static void storm_restore(struct storm_cpu *all, unsigned int count)
{
	unsigned int i;
	u32 original;

	memcpy(&original, unpatched, sizeof(original));
	WRITE_ONCE(storm_restoring, true);
	smp_mb(); /* pairs with that in storm_one_call() */
	for (i = 0; i < count; i++) {
		while (READ_ONCE(all[i].inside))
			cond_resched();
	}
	WRITE_ONCE(*storm_alias, original);
	/* After the bytes. */
	smp_store_release(&storm_restoring, false);
}

static void storm_one_call(struct storm_cpu *me)
{
	long result;

	WRITE_ONCE(me->inside, true);
	smp_mb(); /* pairs with that in storm_restore() */
	if (READ_ONCE(storm_restoring)) {
		WRITE_ONCE(me->inside, false);
		return;
	}
	result = storm_call();
	/* After the call. */
	smp_store_release(&me->inside, false);
	/* Unpatched, the stub answers in EAX: 0x00000000ffffffda. */
	if (result == 0) {
		me->called++;
	} else if ((u32)result == PARA_STUB_UNPATCHED_RESULT) {
		me->not_yet++;
	} else {
		me->wrong_answers++;
		me->wrong_answer = result;
	}
}

static int storm_thread(void *data)
{
	struct storm_cpu *me = data;
	unsigned int round;

	for (round = 0; me->registers ? round < me->rounds :
					!READ_ONCE(storm_over); round++) {
		if (me->registers) {
			if (round % STORM_RESTORE == 0)
				storm_restore(me->all, me->count);
			storm_register(me);
		} else {
			storm_one_call(me);
		}
		if (round % STORM_SLICE)
			continue;
		cond_resched();
		if (me->registers && ktime_after(ktime_get(), storm_end))
			break;
	}
	complete(&me->done);
	return 0;
}

static void storm_start(struct storm_cpu *me)
{
	init_completion(&me->done);
	me->task = kthread_create_on_cpu(storm_thread, me, me->cpu,
					 "para-storm/%u");
	if (IS_ERR(me->task)) {
		complete(&me->done);
		return;
	}
	wake_up_process(me->task);
}

/* One turn: CPU number @turn registers, the others call. */
static int storm_turn(struct storm_cpu *all, unsigned int count,
		      unsigned int turn)
{
	unsigned int i;

	WRITE_ONCE(storm_over, false);
	storm_end = ktime_add_ms(ktime_get(), seconds * 1000 / count);
	for (i = 0; i < count; i++) {
		all[i].all = all;
		all[i].count = count;
		all[i].registers = i == turn;
		all[i].rounds = storm / count;
		storm_start(&all[i]);
	}
	wait_for_completion(&all[turn].done);
	WRITE_ONCE(storm_over, true);
	for (i = 0; i < count; i++) {
		if (i != turn)
			wait_for_completion(&all[i].done);
	}
	for (i = 0; i < count; i++) {
		if (IS_ERR(all[i].task))
			return PTR_ERR(all[i].task);
	}
	return 0;
}

static void storm_report(struct storm_cpu *all, unsigned int count, u64 ms)
{
	unsigned long registered = 0, bad = 0, called = 0, not_yet = 0;
	u8 bytes[PARA_STUB_LEN];
	unsigned int i;

	for (i = 0; i < count; i++) {
		registered += all[i].registered;
		called += all[i].called;
		not_yet += all[i].not_yet;
		bad += all[i].refused + all[i].torn_pages +
		       all[i].wrong_answers;
	}
	for (i = 0; i < PARA_STUB_LEN; i++)
		bytes[i] = READ_ONCE(storm_stub[i]);
	pr_info("storm: %lu registrations, %lu calls answered, %lu before the patch, %lu wrong, %llu ms, stub %6ph\n",
		registered, called, not_yet, bad, ms, bytes);
	for (i = 0; i < count; i++)
		pr_info("storm: cpu%u registered %lu refused %lu torn %lu called %lu wrong %lu (%#lx)\n",
			all[i].cpu, all[i].registered, all[i].refused,
			all[i].torn_pages, all[i].called,
			all[i].wrong_answers, all[i].wrong_answer);
}

static int run_storm(void)
{
	unsigned int count = num_online_cpus(), cpu, i = 0;
	struct page *page = vmalloc_to_page(storm_stub);
	struct storm_cpu *all;
	ktime_t start;
	void *alias;
	int error = -ENOMEM;

	/* Module text is read-only, so map its page again, writable. */
	alias = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	if (!alias)
		return -ENOMEM;
	storm_alias = alias + offset_in_page(storm_stub);
	storm_gpa = page_to_phys(page) + offset_in_page(storm_stub);
	all = kcalloc(count, sizeof(*all), GFP_KERNEL);
	if (!all)
		goto out_alias;
	for_each_online_cpu(cpu) {
		if (i == count)
			break;
		all[i].cpu = cpu;
		all[i].state = (void *)get_zeroed_page(GFP_KERNEL);
		if (!all[i++].state)
			goto out_pages;
	}
	start = ktime_get();
	error = 0;
	for (i = 0; i < count && !error; i++)
		error = storm_turn(all, count, i);
	storm_report(all, count, ktime_ms_delta(ktime_get(), start));
out_pages:
	for (i = 0; i < count; i++)
		free_page((unsigned long)all[i].state);
	kfree(all);
out_alias:
	vunmap(alias);
	return error;
}

/* Both vendors' instructions; one of them is wrong on this CPU. */
PARA_FAULTING_STUB(wrong_vmcall, "0x0f, 0x01, 0xc1");
PARA_FAULTING_STUB(wrong_vmmcall, "0x0f, 0x01, 0xd9");

/* RAX before a call; a call that faults doesn't change it. */
#define WRONG_UNTOUCHED 0x77777777

static long wrong_call(bool amd, unsigned long nr)
{
	if (amd)
		asm volatile("call wrong_vmcall"
			     : "+a" (nr), ASM_CALL_CONSTRAINT
			     : "b" (0), "c" (0), "d" (0), "S" (0)
			     : "memory", "cc");
	else
		asm volatile("call wrong_vmmcall"
			     : "+a" (nr), ASM_CALL_CONSTRAINT
			     : "b" (0), "c" (0), "d" (0), "S" (0)
			     : "memory", "cc");
	return nr;
}

static void wrong_cr0(unsigned long cr0)
{
	/* The kernel's own function refuses to clear WP. */
	asm volatile("mov %0, %%cr0" : : "r" (cr0) : "memory");
}

/*
 * KVM's fix-up rewrites the instruction through the guest's page tables: that
 * faults if text is read-only, and writes the host's instruction otherwise.
 */
static void run_wrong(void)
{
	bool amd = boot_cpu_data.x86_vendor == X86_VENDOR_AMD ||
		   boot_cpu_data.x86_vendor == X86_VENDOR_HYGON;
	const u8 *site = amd ? wrong_vmcall : wrong_vmmcall;
	unsigned long flags, cr0;
	long result;
	u8 bytes[4];

	result = wrong_call(amd, WRONG_UNTOUCHED);
	memcpy(bytes, site, sizeof(bytes));
	pr_info("wrong: read-only text: %s, bytes %4ph\n",
		result == WRONG_UNTOUCHED ? "fault" : "answered", bytes);

	local_irq_save(flags);
	cr0 = read_cr0();
	wrong_cr0(cr0 & ~X86_CR0_WP);
	result = wrong_call(amd, KVM_HC_VAPIC_POLL_IRQ);
	wrong_cr0(cr0);
	local_irq_restore(flags);
	memcpy(bytes, site, sizeof(bytes));
	pr_info("wrong: writable text: result %ld, bytes %4ph\n", result,
		bytes);
}

/* A call by port I/O on a machine where no CPU has registered. */
static void run_unregistered(void)
{
	unsigned long nr = VMM_HC_NOP;

	asm volatile("outb %%al, $0xf5"
		     : "+a" (nr)
		     : "b" (0), "c" (0), "d" (0), "S" (0)
		     : "memory");
	pr_info("unregistered: %s\n",
		nr == VMM_HC_NOP ? "no answer" : "answered");
}

static int __init para_test_init(void)
{
	int error = 0;

	if (unregistered)
		run_unregistered();
	if (wrong)
		run_wrong();
	if (storm && !para_is_live()) {
		pr_err("storm: no host\n");
		error = -ENODEV;
	} else if (storm) {
		error = run_storm();
	}
	return error;
}

static void __exit para_test_exit(void)
{
}

module_init(para_test_init);
module_exit(para_test_exit);

MODULE_DESCRIPTION("Misbehaving guest of the hypercalls through MSR 0x87655678");
MODULE_AUTHOR("The mini-vmm developers");
MODULE_LICENSE("Dual BSD/GPL");
