/* SPDX-License-Identifier: BSD-3-Clause OR Apache-2.0 */
/* Copyright 2026 The mini-vmm developers. */

/*
 * The guest's side of the MSR based hypercall ABI of 2007, for C kernels and
 * for C programs that inspect them.
 *
 * A vCPU fills a page and passes its guest-physical address to the host with
 * one WRMSR. The host replaces four bytes of the guest's stub with an
 * instruction that reaches the host, and a return. From then on the guest
 * calls the stub.
 *
 *	static struct kvm_vcpu_para_state page;		one per vCPU
 *	PARA_ABI_DEFINE_STUB(hypercall_stub);		one for all vCPUs
 *
 *	para_abi_preset(&page, physical_address(hypercall_stub));
 *	fault = my_safe_wrmsr(MSR_KVM_API_MAGIC,
 *			      para_abi_low(gpa), para_abi_high(gpa));
 *	switch (para_abi_classify(&page, fault)) { ... }
 *
 * The page's address has 64 bits: pass both halves. If the page is above 4 GiB
 * and the upper half is 0, the host writes to another page.
 *
 * In a Linux kernel this header includes <linux/types.h>, elsewhere
 * <stdint.h>. If you have neither, define PARA_ABI_NO_TYPES and the types
 * para_abi_u32 and para_abi_u64 first. The functions are static inline, so C89
 * without extensions gets the layout, the numbers and the stub only.
 */
#ifndef PARA_ABI_H
#define PARA_ABI_H

#if defined(PARA_ABI_NO_TYPES)
/* The includer has defined them. */
#elif defined(__KERNEL__)
#include <linux/types.h>
typedef u32 para_abi_u32;
typedef u64 para_abi_u64;
#else
#include <stdint.h>
typedef uint32_t para_abi_u32;
typedef uint64_t para_abi_u64;
#endif

/* ---- Registration ------------------------------------------------------ */

/* WRMSR registers the page at EDX:EAX. RDMSR is #GP. */
#define MSR_KVM_API_MAGIC 0x87655678

/* The version of this ABI. Hosts accept guests of this version and older. */
#define KVM_PARA_API_VERSION 1

/* Size and alignment of the page, and the number of meaningful bytes. */
#define PARA_STATE_SIZE 4096
#define PARA_STATE_PAYLOAD 24

/* The guest stores this in host_version and ret before it registers. */
#define PARA_PRESET 0xffffffff

/*
 * A refused registration leaves this in ret, negated. It is KVM_EINVAL of
 * 2007. In <linux/kvm_para.h> KVM_EINVAL is 22, so the name here differs.
 */
#define PARA_REGISTER_EINVAL 1

/* Little-endian. The fields need no padding. */
struct kvm_vcpu_para_state {
	para_abi_u32 guest_version;	/* guest: KVM_PARA_API_VERSION */
	para_abi_u32 host_version;	/* host; the guest presets it */
	para_abi_u32 size;		/* guest: PARA_STATE_SIZE */
	para_abi_u32 ret;		/* host: 0 or -PARA_REGISTER_EINVAL; preset */
	para_abi_u64 hypercall_gpa;	/* guest: where its stub is */
} __attribute__((aligned(4096)));

#define PARA_OFFSET_GUEST_VERSION 0
#define PARA_OFFSET_HOST_VERSION 4
#define PARA_OFFSET_SIZE 8
#define PARA_OFFSET_RET 12
#define PARA_OFFSET_HYPERCALL_GPA 16

/* ---- The stub ---------------------------------------------------------- */

/* Bytes to reserve, bytes that the host replaces. */
#define PARA_STUB_LEN 6
#define PARA_STUB_PATCH_LEN 4

/* mov eax, -38; ret */
#define PARA_STUB_BYTES 0xb8, 0xda, 0xff, 0xff, 0xff, 0xc3

/* RAX after a call of an unpatched stub. */
#define PARA_STUB_UNPATCHED_RESULT 0xffffffda

/* ---- Results of calls -------------------------------------------------- */

/* Negated in RAX. These are today's numbers, not those of registrations. */
#define PARA_CALL_EPERM 1
#define PARA_CALL_EIO 5
#define PARA_CALL_E2BIG 7
#define PARA_CALL_EAGAIN 11
#define PARA_CALL_EFAULT 14
#define PARA_CALL_EINVAL 22
#define PARA_CALL_EOPNOTSUPP 95
#define PARA_CALL_ENOSYS 1000

/* ---- Call numbers ------------------------------------------------------ */

/* KVM's own, as in <linux/kvm_para.h>. */
#define KVM_HC_VAPIC_POLL_IRQ 1
#define KVM_HC_KICK_CPU 5
#define KVM_HC_CLOCK_PAIRING 9
#define KVM_HC_SEND_IPI 10
#define KVM_HC_SCHED_YIELD 11
#define KVM_HC_MAP_GPA_RANGE 12

/* Calls to a VMM in user space: "MV" and 16 bits. KVM knows none of them. */
#define VMM_HC_BASE 0x4d560000
#define VMM_HC_LAST 0x4d56ffff
#define VMM_HC_NOP 0x4d560000		/* nothing; returns 0 */
#define VMM_HC_BOOT_MARK 0x4d560001	/* mark */
#define VMM_HC_EXIT 0x4d560002		/* status, 0 to 255 */
#define VMM_HC_CONSOLE_WRITE 0x4d560003	/* guest-physical address, length */
#define VMM_HC_SNAPSHOT 0x4d560004	/* flags (0); returns 0, or a clone's number */

/* ---- Functions --------------------------------------------------------- */

#if defined(__cplusplus) || \
	(defined(__STDC_VERSION__) && __STDC_VERSION__ >= 199901L) || \
	(defined(__GNUC__) && !defined(__STRICT_ANSI__))
#define PARA_ABI_INLINE

/* The result of a registration. */
enum para_abi_registration {
	PARA_ABI_REGISTERED = 0,	/* the stub is patched */
	PARA_ABI_REFUSED = 1,		/* by a host; an earlier registration stays */
	PARA_ABI_FAULT = 2,		/* no host, or it rejects the address */
	PARA_ABI_SWALLOWED = 3		/* no host: the page is untouched */
};

/* The halves of an address for WRMSR: EAX and EDX. */
static inline para_abi_u32 para_abi_low(para_abi_u64 gpa)
{
	return (para_abi_u32)gpa;
}

static inline para_abi_u32 para_abi_high(para_abi_u64 gpa)
{
	return (para_abi_u32)(gpa >> 32);
}

/* Fills the page; do it before each registration. */
static inline void para_abi_preset(volatile struct kvm_vcpu_para_state *page,
				   para_abi_u64 hypercall_gpa)
{
	page->guest_version = KVM_PARA_API_VERSION;
	page->host_version = PARA_PRESET;
	page->size = PARA_STATE_SIZE;
	page->ret = PARA_PRESET;
	page->hypercall_gpa = hypercall_gpa;
}

/*
 * Call it after the WRMSR; fault is not 0 if that raised #GP. host_version
 * decides whether there is a host, because a refusal leaves ret at its preset
 * value.
 */
static inline enum para_abi_registration
para_abi_classify(const volatile struct kvm_vcpu_para_state *page, int fault)
{
	if (fault)
		return PARA_ABI_FAULT;
	if (page->host_version == PARA_PRESET)
		return PARA_ABI_SWALLOWED;
	return page->ret == 0 ? PARA_ABI_REGISTERED : PARA_ABI_REFUSED;
}

#endif /* inline */

#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))

/* The stub is defined in assembly, so C++ must not mangle its name. */
#if defined(__cplusplus)
#define PARA_ABI_EXTERN extern "C"
#else
#define PARA_ABI_EXTERN extern
#endif

/*
 * Use it at file scope. It defines the stub and declares it as a function
 * without arguments. The first four bytes are one aligned word, so a host can
 * replace them with one store. There is no room for endbr: a kernel that
 * enforces indirect branch tracking calls it by name in assembly, or disables
 * tracking around calls.
 */
#define PARA_ABI_DEFINE_STUB(name) \
	PARA_ABI_EXTERN void name(void); \
	__asm__(".pushsection .text.para_abi, \"ax\", @progbits\n\t" \
		".balign 4\n\t" \
		".globl " #name "\n\t" \
		".type " #name ", @function\n" \
		#name ":\n\t" \
		".byte 0xb8, 0xda, 0xff, 0xff, 0xff, 0xc3\n\t" \
		".size " #name ", 6\n\t" \
		".popsection")

#endif /* stub */

#if defined(PARA_ABI_INLINE) && defined(__GNUC__) && defined(__x86_64__)

/*
 * Calls with the 64-bit convention of 2007: RAX, RDI RSI RDX RCX R8 R9. Only
 * RAX changes. The stack pointer skips the red zone, for code that has one.
 */
static inline para_abi_u64
para_abi_call(void (*stub)(void), para_abi_u64 nr,
	      para_abi_u64 a0, para_abi_u64 a1, para_abi_u64 a2,
	      para_abi_u64 a3, para_abi_u64 a4, para_abi_u64 a5)
{
	__asm__ volatile("movq %[a4], %%r8\n\t"
			 "movq %[a5], %%r9\n\t"
			 "movq %[stub], %%r11\n\t"
			 "leaq -128(%%rsp), %%rsp\n\t"
			 "call *%%r11\n\t"
			 "leaq 128(%%rsp), %%rsp"
			 : "+a"(nr)
			 : [stub] "r"(stub), "D"(a0), "S"(a1), "d"(a2),
			   "c"(a3), [a4] "r"(a4), [a5] "r"(a5)
			 : "r8", "r9", "r11", "memory", "cc");
	return nr;
}

/* Calls with today's KVM convention: RAX, RBX RCX RDX RSI. */
static inline para_abi_u64
para_abi_call_kvm(void (*stub)(void), para_abi_u64 nr, para_abi_u64 a0,
		  para_abi_u64 a1, para_abi_u64 a2, para_abi_u64 a3)
{
	__asm__ volatile("movq %[stub], %%r11\n\t"
			 "leaq -128(%%rsp), %%rsp\n\t"
			 "call *%%r11\n\t"
			 "leaq 128(%%rsp), %%rsp"
			 : "+a"(nr)
			 : [stub] "r"(stub), "b"(a0), "c"(a1), "d"(a2),
			   "S"(a3)
			 : "r11", "memory", "cc");
	return nr;
}

#endif /* calls */

#endif /* PARA_ABI_H */
