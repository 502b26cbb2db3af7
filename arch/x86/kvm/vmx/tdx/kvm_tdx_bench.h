/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __KVM_X86_VMX_TDX_BENCH_H
#define __KVM_X86_VMX_TDX_BENCH_H

/* What a program and bench.c know of each other. No ABI: both are of one tree. */

#include <linux/ioctl.h>
#include <linux/types.h>

#define KVM_TDX_BENCH_FUNCTIONS		640

/* What is counted. */
enum kvm_tdx_bench_what {
	KVM_TDX_BENCH_NOTHING,		/* what counting itself adds */
	KVM_TDX_BENCH_IOCTL,		/* an ioctl on @fd */
	KVM_TDX_BENCH_GUARD_C,		/* the guard of the VM @fd, taken and released by C */
	KVM_TDX_BENCH_GUARD_RUST,	/* the same by Rust */
	KVM_TDX_BENCH_MUTEXES,		/* the mutexes of that guard, with the vCPUs at hand */
};

struct kvm_tdx_bench {
	/* in */
	__u32 what;
	__s32 fd;
	__u32 request;
	__u32 nr_functions;		/* out */
	__u64 argument;
	/* out */
	__s64 result;
	__u64 instructions;
	__u64 stack;
	struct {
		__u64 address;
		__u64 instructions;
	} functions[KVM_TDX_BENCH_FUNCTIONS];
};

#define KVM_TDX_BENCH	_IOWR('T', 0xbe, struct kvm_tdx_bench)

#endif /* __KVM_X86_VMX_TDX_BENCH_H */
