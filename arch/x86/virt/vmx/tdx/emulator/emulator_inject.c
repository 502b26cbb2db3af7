// SPDX-License-Identifier: GPL-2.0
/*
 * Misbehaviour on purpose: what debugfs can make the emulated TDX module do.
 *
 * Each leaf has a folder with the knobs of the kernel's fault injection, which
 * choose calls, and with files that say what happens to a call that is chosen.
 * Two more folders choose requests for entropy and for the key table.
 *
 * tdx_emulator_inject() runs in the #UD handler, see emulator_glue.c.
 */
#include <linux/array_size.h>
#include <linux/debugfs.h>
#include <linux/fault-inject.h>
#include <linux/init.h>
#include <linux/math64.h>
#include <linux/nmi.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <asm/tsc.h>

#include "tdx_emulator.h"

#ifdef CONFIG_FAULT_INJECTION_DEBUG_FS

/* Longer, and the watchdogs of other CPUs, which wait for this one, wake up. */
#define MAX_HOLD_US	1000000

struct injection {
	/* Which calls. */
	struct fault_attr attr;
	/* The answer instead of the leaf's own, if not 0. */
	u64 status;
	/* For how long all of the leaf's locks stay taken once it is done. */
	u32 hold_us;
	/* The number of calls that were chosen. */
	atomic_t injected;
	/* The number of calls that wait now, with their locks taken. */
	atomic_t holding;
};

/* By the leaf's number; NULL where there is no such leaf. */
static struct injection *leaves[128] __ro_after_init;

static struct injection no_entropy;
static struct injection key_table_busy;

static void injection_reset(struct injection *injection)
{
	struct fault_attr *attr = &injection->attr;

	/* First: no call is chosen any more. */
	WRITE_ONCE(attr->probability, 0);
	WRITE_ONCE(injection->status, 0);
	WRITE_ONCE(injection->hold_us, 0);
	attr->interval = 1;
	atomic_set(&attr->times, 1);
	atomic_set(&attr->space, 0);
	attr->verbose = 0;
	attr->task_filter = false;
	attr->stacktrace_depth = 32;
	attr->require_start = 0;
	attr->require_end = ULONG_MAX;
	attr->reject_start = 0;
	attr->reject_end = 0;
	attr->count = 0;
	attr->ratelimit_state.interval = 0;
	attr->ratelimit_state.burst = DEFAULT_RATELIMIT_BURST;
	atomic_set(&injection->injected, 0);
}

static bool injection_hits(struct injection *injection)
{
	/* A request that nobody armed must not use up a task's fail-nth. */
	if (!injection || (!READ_ONCE(injection->status) &&
			   !READ_ONCE(injection->hold_us) &&
			   !READ_ONCE(injection->attr.probability)))
		return false;
	if (!should_fail(&injection->attr, 1))
		return false;

	atomic_inc(&injection->injected);
	return true;
}

/*
 * Is this call of the leaf to misbehave?  Returns the status that it is to be
 * answered with, or 0 if the leaf shall run, and then for how many microseconds
 * it is to hold its locks.
 */
u64 tdx_emulator_inject(u16 leaf, u32 *hold_us)
{
	struct injection *injection;

	*hold_us = 0;
	if (leaf >= ARRAY_SIZE(leaves))
		return 0;
	injection = leaves[leaf];
	if (!injection_hits(injection))
		return 0;

	*hold_us = READ_ONCE(injection->hold_us);
	return READ_ONCE(injection->status);
}

/* Wait for so many microseconds, or until the leaf is not to hold any more. */
void tdx_emulator_hold(u16 leaf, u32 us)
{
	struct injection *injection = leaves[leaf];
	u64 end = rdtsc() + div_u64((u64)us * tsc_khz, 1000);

	touch_nmi_watchdog();
	atomic_inc(&injection->holding);
	while (READ_ONCE(injection->hold_us) && (s64)(end - rdtsc()) > 0)
		cpu_relax();
	atomic_dec(&injection->holding);
	touch_nmi_watchdog();
}

bool tdx_emulator_inject_no_entropy(void)
{
	return injection_hits(&no_entropy);
}

bool tdx_emulator_inject_key_table_busy(void)
{
	return injection_hits(&key_table_busy);
}

static int hold_us_get(void *data, u64 *val)
{
	struct injection *injection = data;

	*val = READ_ONCE(injection->hold_us);
	return 0;
}

static int hold_us_set(void *data, u64 val)
{
	struct injection *injection = data;

	if (val > MAX_HOLD_US)
		return -ERANGE;
	WRITE_ONCE(injection->hold_us, val);
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(hold_us_fops, hold_us_get, hold_us_set, "%llu\n");

static int statuses_show(struct seq_file *m, void *unused)
{
	tdx_emulator_show_statuses(m, (uintptr_t)m->private);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(statuses);

static void reset_all(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(leaves); i++) {
		if (leaves[i])
			injection_reset(leaves[i]);
	}
	injection_reset(&no_entropy);
	injection_reset(&key_table_busy);
}

static int reset_set(void *data, u64 val)
{
	reset_all();
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(reset_fops, NULL, reset_set, "%llu\n");

static struct dentry * __init injection_create(const char *name,
					       struct dentry *parent,
					       struct injection *injection)
{
	struct dentry *dir;

	ratelimit_state_init(&injection->attr.ratelimit_state, 0, 0);
	injection_reset(injection);
	dir = fault_create_debugfs_attr(name, parent, &injection->attr);
	debugfs_create_atomic_t("injected", 0444, dir, &injection->injected);
	return dir;
}

void __init tdx_emulator_inject_init(struct dentry *parent)
{
	struct injection *injection;
	struct dentry *top, *dir;
	char name[32];
	u16 number;

	top = debugfs_create_dir("inject", parent);
	for (number = 0; number < ARRAY_SIZE(leaves); number++) {
		if (!tdx_emulator_leaf_name(number, name, sizeof(name)))
			continue;
		injection = kzalloc_obj(*injection);
		if (!injection)
			return;
		dir = injection_create(name, top, injection);
		debugfs_create_x64("status", 0600, dir, &injection->status);
		debugfs_create_file_unsafe("hold_us", 0600, dir, injection,
					   &hold_us_fops);
		debugfs_create_atomic_t("holding", 0444, dir,
					&injection->holding);
		debugfs_create_file("statuses", 0444, dir,
				    (void *)(uintptr_t)number, &statuses_fops);
		leaves[number] = injection;
	}
	injection_create("no_entropy", top, &no_entropy);
	injection_create("key_table_busy", top, &key_table_busy);
	debugfs_create_file_unsafe("reset", 0200, top, NULL, &reset_fops);
}

#ifdef CONFIG_INTEL_TDX_EMULATOR_KUNIT_TEST

void tdx_emulator_test_hold(u16 leaf, u32 hold_us)
{
	WRITE_ONCE(leaves[leaf]->hold_us, hold_us);
	WRITE_ONCE(leaves[leaf]->attr.probability, 100);
}

bool tdx_emulator_test_holding(u16 leaf)
{
	return atomic_read_acquire(&leaves[leaf]->holding);
}

void tdx_emulator_test_key_table_busy(void)
{
	WRITE_ONCE(key_table_busy.attr.probability, 100);
}

void tdx_emulator_test_reset(void)
{
	reset_all();
}

#endif /* CONFIG_INTEL_TDX_EMULATOR_KUNIT_TEST */

#else /* CONFIG_FAULT_INJECTION_DEBUG_FS */

u64 tdx_emulator_inject(u16 leaf, u32 *hold_us)
{
	*hold_us = 0;
	return 0;
}

void tdx_emulator_hold(u16 leaf, u32 us)
{
}

bool tdx_emulator_inject_no_entropy(void)
{
	return false;
}

bool tdx_emulator_inject_key_table_busy(void)
{
	return false;
}

void __init tdx_emulator_inject_init(struct dentry *parent)
{
}

#endif /* CONFIG_FAULT_INJECTION_DEBUG_FS */
