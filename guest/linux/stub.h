/* SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause */
/* Copyright 2026 The mini-vmm developers. */

/*
 * Functions in the text section with fixed bytes.
 *
 * They have no ENDBR, because that would change the bytes. They are only
 * called directly; their address is taken only for the host and to read them.
 * The bytes before them are for kernels that pad functions
 * (CONFIG_CALL_PADDING). Their return is always a plain RET, whatever the
 * mitigations, even after the host's patch; the annotation tells objtool.
 */
#ifndef PARA_STUB_H
#define PARA_STUB_H

#include <linux/objtool.h>
#include <linux/types.h>
#include <asm/asm.h>
#include <asm/nospec-branch.h>

/* Everything before the stub's instruction. */
#define PARA_STUB_BEGIN(name)				\
	".pushsection .text, \"ax\", @progbits\n\t"	\
	".balign 16\n\t"				\
	".skip 16, 0x90\n\t"				\
	".type " #name ", @function\n"			\
	#name ":\n\t"					\
	ANNOTATE_NOENDBR

/* The return, and everything after it. */
#define PARA_STUB_END(name)				\
	ANNOTATE_RETPOLINE_SAFE "\n\t"			\
	".byte 0xc3\n\t"				\
	".size " #name ", . - " #name "\n\t"		\
	"int3\n\t"					\
	".balign 16, 0xcc\n\t"				\
	".popsection"

/* mov $-38, %eax; ret: PARA_STUB_BYTES of para_abi.h. */
#define PARA_STUB(name)					\
	asm(PARA_STUB_BEGIN(name)			\
	    ".byte 0xb8, 0xda, 0xff, 0xff, 0xff\n\t"	\
	    PARA_STUB_END(name))

/* One instruction of three bytes and a return; a fault continues at the return. */
#define PARA_FAULTING_STUB(name, bytes)			\
	asm(PARA_STUB_BEGIN(name)			\
	    "1: .byte " bytes "\n"			\
	    "2:\n\t"					\
	    _ASM_EXTABLE(1b, 2b)			\
	    PARA_STUB_END(name))

/* The stub of para.ko, and those of para_test.ko. */
extern u8 para_stub[];
extern u8 storm_stub[];
extern u8 wrong_vmcall[];
extern u8 wrong_vmmcall[];

#endif /* PARA_STUB_H */
