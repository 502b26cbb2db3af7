// SPDX-License-Identifier: GPL-2.0
/*
 * Count the instructions that a call executes, by function, and measure how
 * much stack it needs, by single-stepping it in the kernel.
 *
 * The trap flag is set while the call runs, so each instruction ends in #DB,
 * and a die notifier writes down where it was.  The CPU clears the flag when it
 * delivers an interrupt or an exception and restores it with the return from
 * that, hence what those execute is not counted: on a CPU where SEAMCALL is
 * emulated by its #UD, neither is the TDX module.  Preempt notifiers take the
 * flag away when the task sleeps and give it back when it runs again, so other
 * tasks are not counted either.
 *
 * The figures do not depend on how fast the machine is or what else it does,
 * except where the code itself waits for something.
 */
#include <linux/hash.h>
#include <linux/init.h>
#include <linux/kallsyms.h>
#include <linux/kdebug.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <asm/debugreg.h>
#include <asm/insn-count.h>
#include <asm/processor-flags.h>
#include <asm/ptrace.h>

/* More different instructions than this in one call are not told apart. */
#define PLACES_BITS	16

struct place {
	unsigned long ip;
	u64 times;
};

/* The call that is being counted; one at a time. */
static DEFINE_MUTEX(counting);
static struct task_struct *counted;
static struct place *places;
static u64 instructions;
static unsigned long lowest_sp;

static __always_inline void set_trap_flag(void)
{
	asm volatile("pushfq\n\t"
		     "orq %0, (%%rsp)\n\t"
		     "popfq" :: "i" (X86_EFLAGS_TF) : "memory", "cc");
}

/* Return whether it was set. */
static __always_inline bool clear_trap_flag(void)
{
	unsigned long flags;

	asm volatile("pushfq\n\t"
		     "popq %0\n\t"
		     "pushfq\n\t"
		     "andq %1, (%%rsp)\n\t"
		     "popfq"
		     : "=&r" (flags) : "i" (~X86_EFLAGS_TF) : "memory", "cc");
	return flags & X86_EFLAGS_TF;
}

static void count_instruction(struct pt_regs *regs)
{
	unsigned int slot = hash_long(regs->ip, PLACES_BITS);
	unsigned int i;

	instructions++;
	if (regs->sp < lowest_sp)
		lowest_sp = regs->sp;

	for (i = 0; i < 64; i++) {
		struct place *place = &places[(slot + i) % BIT(PLACES_BITS)];

		if (!place->ip)
			place->ip = regs->ip;
		if (place->ip == regs->ip) {
			place->times++;
			return;
		}
	}
}

static int insn_count_die(struct notifier_block *nb, unsigned long val, void *data)
{
	struct die_args *args = data;
	unsigned long *dr6 = (unsigned long *)args->err;

	if (val != DIE_DEBUG || !READ_ONCE(counted) || user_mode(args->regs) ||
	    !(*dr6 & DR_STEP))
		return NOTIFY_DONE;

	if (current == counted)
		count_instruction(args->regs);
	else
		args->regs->flags &= ~X86_EFLAGS_TF;

	*dr6 &= ~DR_STEP;
	return NOTIFY_STOP;
}

static struct notifier_block insn_count_die_nb = {
	.notifier_call = insn_count_die,
};

struct pause {
	struct preempt_notifier notifier;
	bool was_set;
};

static void insn_count_sched_out(struct preempt_notifier *notifier,
				 struct task_struct *next)
{
	container_of(notifier, struct pause, notifier)->was_set = clear_trap_flag();
}

static void insn_count_sched_in(struct preempt_notifier *notifier, int cpu)
{
	if (container_of(notifier, struct pause, notifier)->was_set)
		set_trap_flag();
}

static struct preempt_ops insn_count_preempt_ops = {
	.sched_in = insn_count_sched_in,
	.sched_out = insn_count_sched_out,
};

/* Sum the places up by function. */
static void sum_up(struct insn_count *count)
{
	unsigned int room = count->nr_functions;
	unsigned int i, j;

	count->nr_functions = 0;
	for (i = 0; i < BIT(PLACES_BITS); i++) {
		unsigned long size, offset, address = places[i].ip;

		if (!address)
			continue;
		if (kallsyms_lookup_size_offset(address, &size, &offset))
			address -= offset;

		for (j = 0; j < count->nr_functions; j++) {
			if (count->functions[j].address == address)
				break;
		}
		if (j == room)
			continue;
		if (j == count->nr_functions)
			count->functions[count->nr_functions++] =
				(struct insn_count_function) { address, 0 };
		count->functions[j].instructions += places[i].times;
	}
}

static noinline long call_counted(long (*fn)(void *arg), void *arg)
{
	long ret;

	lowest_sp = current_stack_pointer;
	set_trap_flag();
	ret = fn(arg);
	clear_trap_flag();
	return ret;
}

/**
 * insn_count_call() - Call a function and count what it executes
 * @count: what is to be found out, see there
 * @fn: the function
 * @arg: its argument
 *
 * A few instructions around the call are counted, too: count a function that
 * does nothing to know how many.
 *
 * Context: Process context. May sleep.
 * Return: what the function returns; -ENOMEM can also be for lack of memory to
 *	count with.
 */
long insn_count_call(struct insn_count *count, long (*fn)(void *arg), void *arg)
{
	struct pause pause = {};
	unsigned long sp = 0;
	long ret;

	guard(mutex)(&counting);

	places = kvcalloc(BIT(PLACES_BITS), sizeof(*places), GFP_KERNEL);
	if (!places)
		return -ENOMEM;

	preempt_notifier_inc();
	preempt_notifier_init(&pause.notifier, &insn_count_preempt_ops);
	preempt_disable();
	preempt_notifier_register(&pause.notifier);
	preempt_enable();

	instructions = 0;
	WRITE_ONCE(counted, current);
	ret = call_counted(fn, arg);
	WRITE_ONCE(counted, NULL);
	sp = current_stack_pointer;

	preempt_disable();
	preempt_notifier_unregister(&pause.notifier);
	preempt_enable();
	preempt_notifier_dec();

	count->instructions = instructions;
	count->stack = sp - lowest_sp;
	sum_up(count);
	kvfree(places);
	return ret;
}

static int __init insn_count_init(void)
{
	return register_die_notifier(&insn_count_die_nb);
}
late_initcall(insn_count_init);
