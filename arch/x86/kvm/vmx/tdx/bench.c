// SPDX-License-Identifier: GPL-2.0
/*
 * The debugfs file kvm_tdx_bench: what a call costs in instructions, and how
 * deep its stack gets.  A program opens the file and asks for calls by ioctl.
 */
#include <linux/debugfs.h>
#include <linux/file.h>
#include <linux/init.h>
#include <linux/kvm_host.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <asm/insn-count.h>

#include "../x86_ops.h"
#include "kvm_tdx_bench.h"

struct bench_call {
	const struct kvm_tdx_bench *bench;
	struct file *file;
	struct mutex *mutexes;	/* to be measured; they protect nothing */
};

static long bench_nothing(void *arg)
{
	return 0;
}

static long bench_ioctl(void *arg)
{
	struct bench_call *call = arg;

	return call->file->f_op->unlocked_ioctl(call->file, call->bench->request,
						call->bench->argument);
}

static long bench_guard_c(void *arg)
{
	struct bench_call *call = arg;

	return tdx_bench_guard_c(call->file->private_data);
}

static long bench_guard_rust(void *arg)
{
	struct bench_call *call = arg;

	return tdx_bench_guard_rust(call->file->private_data);
}

/* The bare cost of as many mutexes: what no guard that takes them can beat. */
static long bench_mutexes(void *arg)
{
	struct bench_call *call = arg;
	struct mutex *mutex = call->mutexes, *end = mutex + call->bench->argument;
	int r;

	for (; mutex < end; mutex++) {
		r = mutex_lock_killable(mutex);
		if (r)
			return r;
	}
	while (mutex-- > call->mutexes)
		mutex_unlock(mutex);
	return 0;
}

static long (*const bench_calls[])(void *arg) = {
	[KVM_TDX_BENCH_NOTHING] = bench_nothing,
	[KVM_TDX_BENCH_IOCTL] = bench_ioctl,
	[KVM_TDX_BENCH_GUARD_C] = bench_guard_c,
	[KVM_TDX_BENCH_GUARD_RUST] = bench_guard_rust,
	[KVM_TDX_BENCH_MUTEXES] = bench_mutexes,
};

static struct mutex *bench_make_mutexes(u64 nr)
{
	struct mutex *mutexes = NULL;
	u64 i;

	if (nr <= 2 * KVM_MAX_VCPUS)
		mutexes = kvmalloc_array(nr, sizeof(*mutexes), GFP_KERNEL);
	for (i = 0; mutexes && i < nr; i++)
		mutex_init(&mutexes[i]);
	return mutexes;
}

static int bench_run(struct kvm_tdx_bench *bench)
{
	struct insn_count count = { .nr_functions = KVM_TDX_BENCH_FUNCTIONS };
	struct bench_call call = { .bench = bench };
	bool on_vm = bench->what == KVM_TDX_BENCH_GUARD_C ||
		     bench->what == KVM_TDX_BENCH_GUARD_RUST;
	int r = -ENOMEM;

	CLASS(fd, f)(bench->fd);

	if (bench->what >= ARRAY_SIZE(bench_calls))
		return -EINVAL;
	if (on_vm || bench->what == KVM_TDX_BENCH_IOCTL) {
		if (fd_empty(f) || !fd_file(f)->f_op->unlocked_ioctl)
			return -EBADF;
		if (on_vm && !file_is_kvm(fd_file(f)))
			return -EINVAL;
		call.file = fd_file(f);
	}
	if (bench->what == KVM_TDX_BENCH_MUTEXES) {
		call.mutexes = bench_make_mutexes(bench->argument);
		if (!call.mutexes)
			return -ENOMEM;
	}

	count.functions = kcalloc(count.nr_functions, sizeof(*count.functions), GFP_KERNEL);
	if (!count.functions)
		goto out;

	bench->result = insn_count_call(&count, bench_calls[bench->what], &call);
	bench->instructions = count.instructions;
	bench->stack = count.stack;
	bench->nr_functions = count.nr_functions;
	BUILD_BUG_ON(sizeof(bench->functions[0]) != sizeof(count.functions[0]));
	memcpy(bench->functions, count.functions,
	       count.nr_functions * sizeof(*count.functions));
	r = 0;
out:
	kfree(count.functions);
	kvfree(call.mutexes);
	return r;
}

static long bench_file_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct kvm_tdx_bench *bench;
	int r;

	if (cmd != KVM_TDX_BENCH)
		return -ENOTTY;

	bench = memdup_user((void __user *)arg, sizeof(*bench));
	if (IS_ERR(bench))
		return PTR_ERR(bench);

	r = bench_run(bench);
	if (!r && copy_to_user((void __user *)arg, bench, sizeof(*bench)))
		r = -EFAULT;
	kfree(bench);
	return r;
}

static const struct file_operations bench_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.unlocked_ioctl = bench_file_ioctl,
};

static int __init bench_init(void)
{
	debugfs_create_file("kvm_tdx_bench", 0600, NULL, NULL, &bench_fops);
	return 0;
}
late_initcall(bench_init);
