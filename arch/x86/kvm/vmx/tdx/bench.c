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
	struct kvm_vcpu **vcpus;	/* of the VM @file, nr_vcpus of them */
	unsigned long nr_vcpus;
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

/*
 * The mutexes that the guard takes and nothing else: the vCPUs are at hand. What
 * no guard can beat.
 */
static long bench_mutexes(void *arg)
{
	struct bench_call *call = arg;
	struct kvm *kvm = call->file->private_data;
	struct kvm_vcpu **vcpu = call->vcpus, **end = vcpu + call->nr_vcpus;
	int r = 0;

	mutex_lock(&kvm->lock);
	for (; vcpu < end; vcpu++) {
		r = mutex_lock_killable_nest_lock(&(*vcpu)->mutex, &kvm->lock);
		if (r)
			break;
	}
	mutex_lock(&kvm->slots_lock);
	mutex_unlock(&kvm->slots_lock);
	for (end = vcpu, vcpu = call->vcpus; vcpu < end; vcpu++)
		mutex_unlock(&(*vcpu)->mutex);
	mutex_unlock(&kvm->lock);
	return r;
}

static long (*const bench_calls[])(void *arg) = {
	[KVM_TDX_BENCH_NOTHING] = bench_nothing,
	[KVM_TDX_BENCH_IOCTL] = bench_ioctl,
	[KVM_TDX_BENCH_GUARD_C] = bench_guard_c,
	[KVM_TDX_BENCH_GUARD_RUST] = bench_guard_rust,
	[KVM_TDX_BENCH_MUTEXES] = bench_mutexes,
};

static int bench_find_vcpus(struct bench_call *call)
{
	struct kvm *kvm = call->file->private_data;
	struct kvm_vcpu *vcpu;
	unsigned long i;

	call->nr_vcpus = atomic_read(&kvm->online_vcpus);
	call->vcpus = kvmalloc_array(call->nr_vcpus, sizeof(*call->vcpus), GFP_KERNEL);
	if (!call->vcpus)
		return -ENOMEM;

	kvm_for_each_vcpu(i, vcpu, kvm)
		call->vcpus[i] = vcpu;
	return 0;
}

static int bench_run(struct kvm_tdx_bench *bench)
{
	struct insn_count count = { .nr_functions = KVM_TDX_BENCH_FUNCTIONS };
	struct bench_call call = { .bench = bench };
	bool on_vm = bench->what == KVM_TDX_BENCH_GUARD_C ||
		     bench->what == KVM_TDX_BENCH_GUARD_RUST ||
		     bench->what == KVM_TDX_BENCH_MUTEXES;
	int r;

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
		r = bench_find_vcpus(&call);
		if (r)
			return r;
	}

	r = -ENOMEM;
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
	kvfree(call.vcpus);
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
