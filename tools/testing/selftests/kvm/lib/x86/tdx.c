// SPDX-License-Identifier: GPL-2.0
#include <stdint.h>
#include <stdbool.h>

#include "tdx.h"

/* Of XFAM, only what each CPU with TDX has: x87, SSE and AVX. */
#define TDX_TEST_XFAM		GENMASK(2, 0)

int __tdx_ioctl(int fd, u32 id, u32 flags, u64 data, u64 *hw_error)
{
	struct kvm_tdx_cmd cmd = {
		.id = id,
		.flags = flags,
		.data = data,
	};
	int ret;

	ret = __tdx_ioctl_raw(fd, &cmd);
	if (hw_error)
		*hw_error = cmd.hw_error;
	return ret;
}

struct kvm_vm *vm_create_tdx(void)
{
	struct kvm_vm *vm = vm_create_barebones_type(KVM_X86_TDX_VM);

	/* KVM wants the local APICs in the kernel, but no I/O APIC. */
	vm_enable_cap(vm, KVM_CAP_SPLIT_IRQCHIP, 24);
	return vm;
}

struct kvm_tdx_capabilities *vm_tdx_get_capabilities(struct kvm_vm *vm)
{
	struct kvm_tdx_capabilities *caps;

	caps = calloc(1, sizeof(*caps) + TDX_MAX_CPUID_ENTRIES *
			 sizeof(caps->cpuid.entries[0]));
	TEST_ASSERT(caps, "-ENOMEM when allocating TDX capabilities");

	caps->cpuid.nent = TDX_MAX_CPUID_ENTRIES;
	vm_tdx_ioctl(vm, KVM_TDX_CAPABILITIES, 0, caps);
	return caps;
}

static const struct kvm_cpuid_entry2 *find_supported_cpuid(u32 function, u32 index)
{
	const struct kvm_cpuid2 *cpuid = kvm_get_supported_cpuid();
	int i;

	for (i = 0; i < cpuid->nent; i++) {
		if (cpuid->entries[i].function == function &&
		    cpuid->entries[i].index == index)
			return &cpuid->entries[i];
	}
	return NULL;
}

struct kvm_tdx_init_vm *vm_tdx_alloc_init_params(struct kvm_vm *vm)
{
	struct kvm_tdx_capabilities *caps = vm_tdx_get_capabilities(vm);
	struct kvm_tdx_init_vm *init;
	int i;

	init = calloc(1, sizeof(*init) + (TDX_MAX_CPUID_ENTRIES + 1) *
			 sizeof(init->cpuid.entries[0]));
	TEST_ASSERT(init, "-ENOMEM when allocating TD parameters");

	init->xfam = caps->supported_xfam & TDX_TEST_XFAM;

	/* Each configurable leaf gets what KVM supports of what can be configured. */
	for (i = 0; i < caps->cpuid.nent; i++) {
		const struct kvm_cpuid_entry2 *mask = &caps->cpuid.entries[i];
		const struct kvm_cpuid_entry2 *supported;
		struct kvm_cpuid_entry2 *entry;

		supported = find_supported_cpuid(mask->function, mask->index);
		if (!supported)
			continue;

		entry = &init->cpuid.entries[init->cpuid.nent++];
		entry->function = mask->function;
		entry->index = mask->index;
		entry->flags = supported->flags;
		entry->eax = supported->eax & mask->eax;
		entry->ebx = supported->ebx & mask->ebx;
		entry->ecx = supported->ecx & mask->ecx;
		entry->edx = supported->edx & mask->edx;

		if (entry->function == 0x80000008) {
			entry->eax &= ~TDX_CPUID_GPAW_MASK;
			entry->eax |= TDX_CPUID_GPAW(48);
		}
	}

	free(caps);
	return init;
}

void vm_tdx_init(struct kvm_vm *vm)
{
	struct kvm_tdx_init_vm *init = vm_tdx_alloc_init_params(vm);

	vm_tdx_ioctl(vm, KVM_TDX_INIT_VM, 0, init);
	free(init);
}

struct kvm_vcpu *vm_tdx_vcpu_create(struct kvm_vm *vm, u32 id)
{
	struct kvm_vcpu *vcpu = __vm_vcpu_add(vm, id);

	/* INIT_VCPU puts the local APIC into x2APIC mode, which needs CPUID. */
	vcpu_init_cpuid(vcpu, kvm_get_supported_cpuid());
	return vcpu;
}

void vcpu_tdx_init(struct kvm_vcpu *vcpu)
{
	vcpu_tdx_ioctl(vcpu, KVM_TDX_INIT_VCPU, 0, 0);
}

void vm_tdx_finalize(struct kvm_vm *vm)
{
	vm_tdx_ioctl(vm, KVM_TDX_FINALIZE_VM, 0, 0);
}

void vm_tdx_add_slot(struct kvm_vm *vm, u32 slot, gpa_t gpa, u64 nr_pages)
{
	vm_userspace_mem_region_add(vm, VM_MEM_SRC_ANONYMOUS, gpa, slot,
				    nr_pages, KVM_MEM_GUEST_MEMFD);
	vm_mem_set_private(vm, gpa, nr_pages * vm->page_size);
}

int __vcpu_tdx_init_mem_region(struct kvm_vcpu *vcpu, u32 flags,
			       struct kvm_tdx_init_mem_region *region)
{
	return __vcpu_tdx_ioctl(vcpu, KVM_TDX_INIT_MEM_REGION, flags, region);
}

void vcpu_tdx_init_mem_region(struct kvm_vcpu *vcpu, u32 flags, void *source,
			      gpa_t gpa, u64 nr_pages)
{
	struct kvm_tdx_init_mem_region region = {
		.source_addr = (u64)source,
		.gpa = gpa,
		.nr_pages = nr_pages,
	};

	vcpu_tdx_ioctl(vcpu, KVM_TDX_INIT_MEM_REGION, flags, &region);
	TEST_ASSERT(!region.nr_pages &&
		    region.source_addr == (u64)source + nr_pages * vcpu->vm->page_size &&
		    region.gpa == gpa + nr_pages * vcpu->vm->page_size,
		    "KVM_TDX_INIT_MEM_REGION left nr_pages %llu, source 0x%llx, gpa 0x%llx",
		    region.nr_pages, region.source_addr, region.gpa);
}

void td_create(struct td *td, int nr_vcpus)
{
	size_t size = TDX_TEST_NR_PAGES * getpagesize();
	int i;

	TEST_ASSERT(nr_vcpus <= TDX_MAX_VCPUS, "At most %d vCPUs, not %d",
		    TDX_MAX_VCPUS, nr_vcpus);

	*td = (struct td) {
		.vm = vm_create_tdx(),
		.nr_vcpus = nr_vcpus,
		.step = TD_CREATED,
		.source = kvm_mmap(size, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1),
	};

	for (i = 0; i < TDX_TEST_NR_PAGES; i++)
		memset(td->source + i * getpagesize(), 0xa0 + i, getpagesize());
}

void td_free(struct td *td)
{
	if (!td->vm)
		return;

	kvm_vm_free(td->vm);
	kvm_munmap(td->source, TDX_TEST_NR_PAGES * getpagesize());
	td->vm = NULL;
}

static void td_do_step(struct td *td, enum td_step step)
{
	int i;

	switch (step) {
	case TD_INITIALIZED:
		vm_tdx_init(td->vm);
		break;
	case TD_VCPUS_CREATED:
		for (i = 0; i < td->nr_vcpus; i++)
			td->vcpus[i] = vm_tdx_vcpu_create(td->vm, i);
		break;
	case TD_VCPUS_INITIALIZED:
		for (i = 0; i < td->nr_vcpus; i++)
			vcpu_tdx_init(td->vcpus[i]);
		break;
	case TD_SLOT_ADDED:
		vm_tdx_add_slot(td->vm, TDX_TEST_SLOT, TDX_TEST_GPA, TDX_TEST_NR_PAGES);
		break;
	case TD_MEMORY_ADDED:
		vcpu_tdx_init_mem_region(td->vcpus[0], KVM_TDX_MEASURE_MEMORY_REGION,
					 td->source, TDX_TEST_GPA, TDX_TEST_NR_PAGES);
		break;
	case TD_FINALIZED:
		vm_tdx_finalize(td->vm);
		break;
	default:
		TEST_FAIL("No step %d", step);
	}
}

void td_advance(struct td *td, enum td_step step)
{
	while (td->step < step)
		td_do_step(td, ++td->step);
}

void td_create_to(struct td *td, int nr_vcpus, enum td_step step)
{
	td_create(td, nr_vcpus);
	td_advance(td, step);
}

void td_finish(struct td *td)
{
	td_advance(td, TD_FINALIZED);
	td_free(td);
}

int td_max_vcpus(struct td *td)
{
	return vm_check_cap(td->vm, KVM_CAP_MAX_VCPUS);
}

struct kvm_tdx_init_mem_region td_region(struct td *td, int page, gpa_t gpa, u64 nr_pages)
{
	return (struct kvm_tdx_init_mem_region) {
		.source_addr = (u64)td->source + page * getpagesize(),
		.gpa = gpa,
		.nr_pages = nr_pages,
	};
}
