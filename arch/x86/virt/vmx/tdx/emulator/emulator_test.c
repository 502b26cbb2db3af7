// SPDX-License-Identifier: GPL-2.0
/*
 * What the KUnit tests of the emulated TDX module need of C: SEAMCALLs by the
 * kernel's own wrapper, on a CPU of their choice.
 */
#include <kunit/test.h>
#include <kunit/test-bug.h>
#include <linux/cleanup.h>
#include <linux/cpumask.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/smp.h>

#include "../seamcall_internal.h"
#include "tdx_emulator.h"

/*
 * Stay on one CPU from now on.  Returns another one that is online, or nr_cpu_ids
 * if there is none.
 */
unsigned int tdx_emulator_test_begin(void)
{
	unsigned int own = cpumask_first(cpu_online_mask);

	if (set_cpus_allowed_ptr(current, cpumask_of(own)))
		return nr_cpu_ids;

	return cpumask_next(own, cpu_online_mask);
}

void tdx_emulator_test_skip(void)
{
	struct kunit *test = kunit_get_current_test();

	if (test)
		kunit_mark_skipped(test, "needs a TDX module, emulated and ready, and two CPUs");
}

void tdx_emulator_test_say(const char *text, size_t len)
{
	struct kunit *test = kunit_get_current_test();

	if (test)
		kunit_info(test, "%.*s", (int)len, text);
}

static void do_call(void *data)
{
	struct tdx_emulator_test_call *call = data;
	struct tdx_module_args args = {
		.rcx = call->rcx,
		.rdx = call->rdx,
		.r8 = call->r8,
		.r9 = call->r9,
	};

	scoped_guard(preempt)
		call->status = __seamcall_dirty_cache(__seamcall_saved_ret,
						      call->rax, &args);
	call->rcx = args.rcx;
	call->rdx = args.rdx;
	call->r8 = args.r8;
	call->r9 = args.r9;
	/* Pairs with tdx_emulator_test_done(). */
	smp_store_release(&call->done, true);
}

/* Make a SEAMCALL on this CPU. */
void tdx_emulator_test_call(struct tdx_emulator_test_call *call)
{
	do_call(call);
}

/*
 * Make a SEAMCALL on another CPU, in an interrupt, and do not wait for it: call
 * has to stay until tdx_emulator_test_done().
 */
int tdx_emulator_test_start(unsigned int cpu,
			    struct tdx_emulator_test_call *call)
{
	return smp_call_function_single(cpu, do_call, call, false);
}

bool tdx_emulator_test_done(const struct tdx_emulator_test_call *call)
{
	/* Pairs with do_call(). */
	return smp_load_acquire(&call->done);
}

/* Returns the physical address of zeroed pages, or 0. */
u64 tdx_emulator_test_alloc(unsigned int order)
{
	void *va = (void *)__get_free_pages(GFP_KERNEL | __GFP_ZERO, order);

	return va ? virt_to_phys(va) : 0;
}

void tdx_emulator_test_free(u64 pa, unsigned int order)
{
	if (pa)
		free_pages((unsigned long)phys_to_virt(pa), order);
}
