/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Helpers to build trust domains (TDs) with KVM_MEMORY_ENCRYPT_OP.
 */
#ifndef SELFTEST_KVM_TDX_H
#define SELFTEST_KVM_TDX_H

#include <stdbool.h>
#include <stdint.h>

#include "kvm_util.h"
#include "processor.h"

#define TDX_MAX_VCPUS		8

/* Where TDs of these tests have their private memory, in pages and as a GPA. */
#define TDX_TEST_SLOT		10
#define TDX_TEST_GPA		0x100000ul
#define TDX_TEST_NR_PAGES	4

/* KVM_MAX_CPUID_ENTRIES, which KVM does not tell user space. */
#define TDX_MAX_CPUID_ENTRIES	256

#define TDX_STATUS_MASK		0xffffffff00000000ull
#define TDX_OPERAND_INVALID	0xc000010000000000ull

/* CPUID.0x80000008.EAX[23:16], where KVM takes the width of guest addresses. */
#define TDX_CPUID_GPAW_MASK	GENMASK(23, 16)
#define TDX_CPUID_GPAW(bits)	((u32)(bits) << 16)

static inline bool is_tdx_vm(struct kvm_vm *vm)
{
	return vm->type == KVM_X86_TDX_VM;
}

static inline bool kvm_has_tdx(void)
{
	return kvm_check_cap(KVM_CAP_VM_TYPES) & BIT(KVM_X86_TDX_VM);
}

/* Issue one KVM_TDX_* command that may lie where the kernel cannot get at it. */
static inline int __tdx_ioctl_raw(int fd, struct kvm_tdx_cmd *cmd)
{
	/* The ioctl number says "unsigned long", so there is no type to check. */
	return ioctl(fd, KVM_MEMORY_ENCRYPT_OP, cmd);
}

/*
 * Issue one KVM_TDX_* command.  As with ioctl(2), the return value is -1 and
 * errno says why if the command fails.  @hw_error may be NULL.
 */
int __tdx_ioctl(int fd, u32 id, u32 flags, u64 data, u64 *hw_error);

#define __vm_tdx_ioctl(vm, cmd, flags, arg)				\
({									\
	struct kvm_vm *_vm = (vm);					\
									\
	__tdx_ioctl(_vm->fd, cmd, flags, (u64)(arg), NULL);		\
})

#define vm_tdx_ioctl(vm, cmd, flags, arg)				\
({									\
	struct kvm_vm *__vm = (vm);					\
	int ret = __vm_tdx_ioctl(__vm, cmd, flags, arg);		\
									\
	__TEST_ASSERT_VM_VCPU_IOCTL(!ret, #cmd, ret, __vm);		\
})

#define __vcpu_tdx_ioctl(vcpu, cmd, flags, arg)				\
({									\
	struct kvm_vcpu *_vcpu = (vcpu);				\
									\
	__tdx_ioctl(_vcpu->fd, cmd, flags, (u64)(arg), NULL);		\
})

#define vcpu_tdx_ioctl(vcpu, cmd, flags, arg)				\
({									\
	struct kvm_vcpu *__vcpu = (vcpu);				\
	int ret = __vcpu_tdx_ioctl(__vcpu, cmd, flags, arg);		\
									\
	__TEST_ASSERT_VM_VCPU_IOCTL(!ret, #cmd, ret, __vcpu->vm);	\
})

/* Create a VM of the TDX type and nothing else: no TD yet, no vCPU, no memory. */
struct kvm_vm *vm_create_tdx(void);

/* What KVM_TDX_CAPABILITIES reports, to be freed by the caller. */
struct kvm_tdx_capabilities *vm_tdx_get_capabilities(struct kvm_vm *vm);

/*
 * Parameters for KVM_TDX_INIT_VM that both KVM and the TDX module accept, with
 * room for TDX_MAX_CPUID_ENTRIES + 1 CPUID entries.  To be freed by the caller.
 */
struct kvm_tdx_init_vm *vm_tdx_alloc_init_params(struct kvm_vm *vm);

void vm_tdx_init(struct kvm_vm *vm);
struct kvm_vcpu *vm_tdx_vcpu_create(struct kvm_vm *vm, u32 id);
void vcpu_tdx_init(struct kvm_vcpu *vcpu);
void vm_tdx_finalize(struct kvm_vm *vm);

/* Add a slot of private memory, without contents as far as the TD is concerned. */
void vm_tdx_add_slot(struct kvm_vm *vm, u32 slot, gpa_t gpa, u64 nr_pages);

/*
 * Copy pages into the TD.  The raw variant leaves in @region what was not done.
 */
int __vcpu_tdx_init_mem_region(struct kvm_vcpu *vcpu, u32 flags,
			       struct kvm_tdx_init_mem_region *region);
void vcpu_tdx_init_mem_region(struct kvm_vcpu *vcpu, u32 flags, void *source,
			      gpa_t gpa, u64 nr_pages);

/* The states a TD goes through, each reached by one or more ioctls. */
enum td_step {
	TD_CREATED,
	TD_INITIALIZED,
	TD_VCPUS_CREATED,
	TD_VCPUS_INITIALIZED,
	TD_SLOT_ADDED,
	TD_MEMORY_ADDED,
	TD_FINALIZED,
	TD_NR_STEPS,
};

struct td {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpus[TDX_MAX_VCPUS];
	int nr_vcpus;
	enum td_step step;
	/* TDX_TEST_NR_PAGES pages, each with contents of its own. */
	void *source;
};

void td_create(struct td *td, int nr_vcpus);
void td_free(struct td *td);

/*
 * Take @td from the step it is in to @step.  Nothing is done if it is already
 * there, so that a test can do some of the steps by itself.
 */
void td_advance(struct td *td, enum td_step step);

/* Create a TD and take it to @step. */
void td_create_to(struct td *td, int nr_vcpus, enum td_step step);

/* Finish the life cycle of a TD that is none the worse, and the TD itself. */
void td_finish(struct td *td);

int td_max_vcpus(struct td *td);

/* The region of @nr_pages at @gpa that is to get what td->source has from @page on. */
struct kvm_tdx_init_mem_region td_region(struct td *td, int page, gpa_t gpa, u64 nr_pages);

#endif /* SELFTEST_KVM_TDX_H */
