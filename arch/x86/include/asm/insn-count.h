/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _ASM_X86_INSN_COUNT_H
#define _ASM_X86_INSN_COUNT_H

#include <linux/types.h>

struct insn_count_function {
	u64 address;
	u64 instructions;
};

/**
 * struct insn_count - what a piece of kernel code executed
 * @instructions: instructions, those of interrupts and exceptions not counted
 * @stack: bytes of stack that were in use at most, beyond those of the caller
 * @nr_functions: functions that executed something, at most as many as there is
 *	room for; in: the room
 * @functions: these functions with how many instructions each executed
 */
struct insn_count {
	u64 instructions;
	u64 stack;
	unsigned int nr_functions;
	struct insn_count_function *functions;
};

long insn_count_call(struct insn_count *count, long (*fn)(void *arg), void *arg);

#endif /* _ASM_X86_INSN_COUNT_H */
