// SPDX-License-Identifier: GPL-2.0
/*
 * What KVM's TDX ioctls answer to input and conditions they cannot accept, and
 * that the TD is as usable afterwards as it was before: most tests end with
 * taking the TD to the end of its set-up.
 */
#include <pthread.h>
#include <signal.h>
#include <sys/utsname.h>

#include "tdx_test.h"

#define CPUID_7_EBX_HLE		BIT(4)
#define CPUID_7_EBX_RTM		BIT(11)
#define CPUID_7_ECX_WAITPKG	BIT(5)

/* A second piece of private memory, for what is not to be part of TD_MEMORY_ADDED. */
#define OTHER_SLOT		(TDX_TEST_SLOT + 1)
#define OTHER_GPA		(TDX_TEST_GPA * 2)
#define OTHER_NR_PAGES		4

/* With 48-bit guest addresses, that of GPAs which are shared with the host. */
#define GPA_SHARED		BIT_ULL(47)

/* Copy @data to a page of its own that only can be read. */
static void *map_read_only(const void *data, size_t size)
{
	void *page = map_pages(1, PROT_READ | PROT_WRITE);
	int ret;

	memcpy(page, data, size);
	ret = mprotect(page, getpagesize(), PROT_READ);
	TEST_ASSERT(!ret, __KVM_SYSCALL_ERROR("mprotect()", ret));
	return page;
}

/* The command itself: argp */

TEST_F(tdx, unknown_command)
{
	u32 vm_only[] = { KVM_TDX_CAPABILITIES, KVM_TDX_INIT_VM, KVM_TDX_FINALIZE_VM };
	u32 vcpu_only[] = { KVM_TDX_INIT_VCPU, KVM_TDX_INIT_MEM_REGION, KVM_TDX_GET_CPUID };
	u32 unknown[] = { KVM_TDX_CMD_NR_MAX, 0x80000000, -1 };
	struct td td;
	int i, step;

	td_create(&td, 1);
	for (step = TD_CREATED; step < TD_NR_STEPS; step++) {
		td_advance(&td, step);

		for (i = 0; i < 3; i++) {
			EXPECT_ERRNO(EINVAL, __vm_tdx_ioctl(td.vm, unknown[i], 0, 0));
			EXPECT_ERRNO(EINVAL, __vm_tdx_ioctl(td.vm, vcpu_only[i], 0, 0));
			if (step < TD_VCPUS_CREATED)
				continue;
			EXPECT_ERRNO(EINVAL, __vcpu_tdx_ioctl(td.vcpus[0], unknown[i], 0, 0));
			EXPECT_ERRNO(EINVAL, __vcpu_tdx_ioctl(td.vcpus[0], vm_only[i], 0, 0));
		}
	}
	td_free(&td);
}

TEST_F(tdx, command_not_readable)
{
	void *pages = map_pages(2, PROT_READ | PROT_WRITE);
	void *none = map_pages(1, PROT_NONE);
	struct kvm_tdx_cmd *half;
	void *bad[4];
	struct td td;
	int i;

	/* All but the last member on a page, and nothing behind it. */
	half = pages + getpagesize() - offsetof(struct kvm_tdx_cmd, hw_error);
	kvm_munmap(pages + getpagesize(), getpagesize());
	half->id = KVM_TDX_CAPABILITIES;

	bad[0] = NULL;
	bad[1] = none;
	bad[2] = half;
	bad[3] = (void *)-4096ul;

	td_create_to(&td, 1, TD_VCPUS_CREATED);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		EXPECT_ERRNO(EFAULT, ioctl(td.vm->fd, KVM_MEMORY_ENCRYPT_OP, bad[i]));
		EXPECT_ERRNO(EFAULT, ioctl(td.vcpus[0]->fd, KVM_MEMORY_ENCRYPT_OP, bad[i]));
	}
	td_finish(&td);
	unmap_pages(pages, 1);
	unmap_pages(none, 1);
}

/*
 * KVM writes the command back after INIT_VM and FINALIZE_VM, whether they
 * succeed or not.  That it cannot does not undo them.
 */
TEST_F(tdx, command_not_writable)
{
	struct kvm_tdx_cmd cmd = {}, *read_only;
	struct kvm_tdx_init_vm *init;
	struct td td;

	td_create(&td, 1);
	init = vm_tdx_alloc_init_params(td.vm);

	cmd.id = KVM_TDX_CMD_NR_MAX;
	read_only = map_read_only(&cmd, sizeof(cmd));
	EXPECT_ERRNO(EINVAL, __tdx_ioctl_raw(td.vm->fd, read_only));
	unmap_pages(read_only, 1);

	cmd.id = KVM_TDX_CAPABILITIES;
	cmd.flags = 1;
	read_only = map_read_only(&cmd, sizeof(cmd));
	EXPECT_ERRNO(EINVAL, __tdx_ioctl_raw(td.vm->fd, read_only));
	unmap_pages(read_only, 1);

	cmd.id = KVM_TDX_INIT_VM;
	cmd.data = (u64)init;
	read_only = map_read_only(&cmd, sizeof(cmd));
	EXPECT_ERRNO(EFAULT, __tdx_ioctl_raw(td.vm->fd, read_only));
	unmap_pages(read_only, 1);

	/* The flags were wrong, so there is no TD yet.  Here comes one. */
	cmd.flags = 0;
	read_only = map_read_only(&cmd, sizeof(cmd));
	EXPECT_ERRNO(EFAULT, __tdx_ioctl_raw(td.vm->fd, read_only));
	unmap_pages(read_only, 1);
	EXPECT_ERRNO(EINVAL, __vm_tdx_ioctl(td.vm, KVM_TDX_INIT_VM, 0, init));
	td.step = TD_INITIALIZED;

	/* Commands to vCPUs are never written. */
	td_advance(&td, TD_VCPUS_CREATED);
	cmd.id = KVM_TDX_INIT_VCPU;
	cmd.data = 0;
	read_only = map_read_only(&cmd, sizeof(cmd));
	EXPECT_ERRNO(0, __tdx_ioctl_raw(td.vcpus[0]->fd, read_only));
	EXPECT_ERRNO(EINVAL, __tdx_ioctl_raw(td.vcpus[0]->fd, read_only));
	unmap_pages(read_only, 1);
	td.step = TD_VCPUS_INITIALIZED;

	td_advance(&td, TD_MEMORY_ADDED);
	cmd.id = KVM_TDX_FINALIZE_VM;
	read_only = map_read_only(&cmd, sizeof(cmd));
	EXPECT_ERRNO(EFAULT, __tdx_ioctl_raw(td.vm->fd, read_only));
	unmap_pages(read_only, 1);
	EXPECT_ERRNO(EINVAL, __vm_tdx_ioctl(td.vm, KVM_TDX_FINALIZE_VM, 0, 0));

	free(init);
	td_free(&td);
}

TEST_F(tdx, hw_error_not_zero)
{
	u64 values[] = { 1, BIT_ULL(63), -1ull };
	struct kvm_tdx_cmd cmd, before;
	struct td td;
	int i;

	td_create_to(&td, 1, TD_VCPUS_CREATED);
	for (i = 0; i < ARRAY_SIZE(values) * (KVM_TDX_CMD_NR_MAX + 1); i++) {
		cmd = (struct kvm_tdx_cmd) {
			.id = i / ARRAY_SIZE(values),
			.hw_error = values[i % ARRAY_SIZE(values)],
		};
		before = cmd;
		EXPECT_ERRNO(EINVAL, __tdx_ioctl_raw(td.vm->fd, &cmd));
		EXPECT_ERRNO(EINVAL, __tdx_ioctl_raw(td.vcpus[0]->fd, &cmd));
		EXPECT_EQ(0, memcmp(&before, &cmd, sizeof(cmd)));
	}
	td_finish(&td);
}

TEST_F(tdx, flags)
{
	struct kvm_tdx_capabilities *caps;
	struct kvm_tdx_init_mem_region region;
	struct kvm_tdx_init_vm *init;
	struct kvm_cpuid2 *cpuid;
	struct td td;
	int i;

	td_create(&td, 1);
	caps = vm_tdx_get_capabilities(td.vm);
	init = vm_tdx_alloc_init_params(td.vm);
	for (i = 0; i < 32; i++) {
		EXPECT_ERRNO(EINVAL, __vm_tdx_ioctl(td.vm, KVM_TDX_CAPABILITIES, BIT(i), caps));
		EXPECT_ERRNO(EINVAL, __vm_tdx_ioctl(td.vm, KVM_TDX_INIT_VM, BIT(i), init));
	}

	td_advance(&td, TD_VCPUS_CREATED);
	for (i = 0; i < 32; i++)
		EXPECT_ERRNO(EINVAL, __vcpu_tdx_ioctl(td.vcpus[0], KVM_TDX_INIT_VCPU, BIT(i), 0));

	/* GET_CPUID and FINALIZE_VM have always ignored theirs. */
	cpuid = allocate_kvm_cpuid2(TDX_MAX_CPUID_ENTRIES);
	EXPECT_ERRNO(0, __vcpu_tdx_ioctl(td.vcpus[0], KVM_TDX_GET_CPUID, -1, cpuid));
	free(cpuid);

	td_advance(&td, TD_SLOT_ADDED);
	region = td_region(&td, 0, TDX_TEST_GPA, 1);
	for (i = 0; i < 32; i++) {
		if (BIT(i) == KVM_TDX_MEASURE_MEMORY_REGION)
			continue;
		EXPECT_ERRNO(EINVAL, __vcpu_tdx_init_mem_region(td.vcpus[0], BIT(i), &region));
	}

	td_advance(&td, TD_MEMORY_ADDED);
	EXPECT_ERRNO(0, __vm_tdx_ioctl(td.vm, KVM_TDX_FINALIZE_VM, -1, -1));

	free(init);
	free(caps);
	td_free(&td);
}

/* KVM_TDX_CAPABILITIES */

TEST_F(tdx, capabilities)
{
	struct kvm_tdx_capabilities *caps, *read_only, *half;
	void *none = map_pages(1, PROT_NONE);
	void *pages = map_pages(2, PROT_READ | PROT_WRITE);
	struct td td;
	u32 nent;

	td_create(&td, 1);
	caps = vm_tdx_get_capabilities(td.vm);
	nent = caps->cpuid.nent;

	EXPECT_ERRNO(EFAULT, __vm_tdx_ioctl(td.vm, KVM_TDX_CAPABILITIES, 0, NULL));
	EXPECT_ERRNO(EFAULT, __vm_tdx_ioctl(td.vm, KVM_TDX_CAPABILITIES, 0, none));

	memset(caps, 0, sizeof(*caps));
	EXPECT_ERRNO(E2BIG, __vm_tdx_ioctl(td.vm, KVM_TDX_CAPABILITIES, 0, caps));
	caps->cpuid.nent = nent - 1;
	EXPECT_ERRNO(E2BIG, __vm_tdx_ioctl(td.vm, KVM_TDX_CAPABILITIES, 0, caps));
	EXPECT_EQ(nent - 1, caps->cpuid.nent);
	EXPECT_EQ(0, caps->supported_attrs);

	caps->cpuid.nent = nent;
	EXPECT_ERRNO(0, __vm_tdx_ioctl(td.vm, KVM_TDX_CAPABILITIES, 0, caps));
	EXPECT_EQ(nent, caps->cpuid.nent);

	read_only = map_read_only(caps, sizeof(*caps));
	EXPECT_ERRNO(EFAULT, __vm_tdx_ioctl(td.vm, KVM_TDX_CAPABILITIES, 0, read_only));

	/* Room for everything but the last entry. */
	half = pages + getpagesize() - sizeof(*caps) -
	       (nent - 1) * sizeof(caps->cpuid.entries[0]);
	kvm_munmap(pages + getpagesize(), getpagesize());
	half->cpuid.nent = nent;
	EXPECT_ERRNO(EFAULT, __vm_tdx_ioctl(td.vm, KVM_TDX_CAPABILITIES, 0, half));

	unmap_pages(read_only, 1);
	unmap_pages(pages, 1);
	unmap_pages(none, 1);
	free(caps);
	td_finish(&td);
}

/* KVM_TDX_INIT_VM */

#define EXPECT_INIT_VM(_errno, _td, _init)					\
	EXPECT_ERRNO(_errno, __vm_tdx_ioctl((_td)->vm, KVM_TDX_INIT_VM, 0, _init))

static struct kvm_cpuid_entry2 *find_entry(struct kvm_cpuid2 *cpuid, u32 function)
{
	int i;

	for (i = 0; i < cpuid->nent; i++) {
		if (cpuid->entries[i].function == function && !cpuid->entries[i].index)
			return &cpuid->entries[i];
	}
	return NULL;
}

TEST_F(tdx, init_vm_memory)
{
	struct kvm_tdx_init_vm *init, *half;
	void *none = map_pages(1, PROT_NONE);
	void *pages = map_pages(2, PROT_READ | PROT_WRITE);
	struct td td;
	size_t size;

	td_create(&td, 1);
	init = vm_tdx_alloc_init_params(td.vm);
	size = sizeof(*init) + init->cpuid.nent * sizeof(init->cpuid.entries[0]);

	EXPECT_INIT_VM(EFAULT, &td, NULL);
	EXPECT_INIT_VM(EFAULT, &td, none);

	/* nent can be read, what is before it cannot. */
	mprotect(pages, getpagesize(), PROT_NONE);
	half = pages + getpagesize() - offsetof(struct kvm_tdx_init_vm, cpuid);
	memcpy(&half->cpuid, &init->cpuid, size - offsetof(struct kvm_tdx_init_vm, cpuid));
	EXPECT_INIT_VM(EFAULT, &td, half);

	/* The last byte of the last entry cannot. */
	mprotect(pages, getpagesize(), PROT_READ | PROT_WRITE);
	kvm_munmap(pages + getpagesize(), getpagesize());
	half = pages + getpagesize() - size + 1;
	memcpy(half, init, size - 1);
	EXPECT_INIT_VM(EFAULT, &td, half);

	/* The first wrong thing counts: the state, the flags, then the memory. */
	EXPECT_ERRNO(EINVAL, __vm_tdx_ioctl(td.vm, KVM_TDX_INIT_VM, 1, none));
	td_advance(&td, TD_INITIALIZED);
	EXPECT_INIT_VM(EINVAL, &td, none);

	unmap_pages(pages, 1);
	unmap_pages(none, 1);
	free(init);
	td_finish(&td);
}

TEST_F(tdx, init_vm_reserved)
{
	struct kvm_tdx_init_vm *init;
	struct td td;
	int i;

	td_create(&td, 1);
	init = vm_tdx_alloc_init_params(td.vm);

	for (i = 0; i < sizeof(init->reserved); i++) {
		((u8 *)init->reserved)[i] = 1;
		EXPECT_INIT_VM(EINVAL, &td, init);
		((u8 *)init->reserved)[i] = 0;
	}

	init->cpuid.padding = 1;
	EXPECT_INIT_VM(EINVAL, &td, init);

	free(init);
	td_finish(&td);
}

/* Neither attributes nor XFAM may have bits that are not offered. */
TEST_F(tdx, init_vm_not_offered)
{
	struct kvm_tdx_capabilities *caps;
	struct kvm_tdx_init_vm *init;
	struct td td;
	u64 before;
	int i;

	td_create(&td, 1);
	caps = vm_tdx_get_capabilities(td.vm);
	init = vm_tdx_alloc_init_params(td.vm);

	for (i = 0; i < 64; i++) {
		if (!(caps->supported_attrs & BIT_ULL(i))) {
			before = init->attributes;
			init->attributes |= BIT_ULL(i);
			EXPECT_INIT_VM(EINVAL, &td, init);
			init->attributes = before;
		}
		if (!(caps->supported_xfam & BIT_ULL(i))) {
			before = init->xfam;
			init->xfam |= BIT_ULL(i);
			EXPECT_INIT_VM(EINVAL, &td, init);
			init->xfam = before;
		}
	}

	free(init);
	free(caps);
	td_finish(&td);
}

TEST_F(tdx, init_vm_cpuid)
{
	static const u8 widths[] = { 0, 36, 47, 49, 51, 53, 255 };
	struct kvm_cpuid_entry2 *entry, before;
	struct kvm_tdx_init_vm *init;
	struct td td;
	int i, nent;

	td_create(&td, 1);
	init = vm_tdx_alloc_init_params(td.vm);
	nent = init->cpuid.nent;

	/* More than KVM has room for, without looking at them. */
	init->cpuid.nent = TDX_MAX_CPUID_ENTRIES + 1;
	EXPECT_INIT_VM(E2BIG, &td, init);
	init->cpuid.nent = -1;
	EXPECT_INIT_VM(E2BIG, &td, init);
	/* As many as it has room for, most of them the same and empty. */
	init->cpuid.nent = TDX_MAX_CPUID_ENTRIES;
	EXPECT_INIT_VM(EINVAL, &td, init);
	init->cpuid.nent = 0;
	EXPECT_INIT_VM(EINVAL, &td, init);
	init->cpuid.nent = nent;

	/* Guest addresses have 48 or 52 bits. */
	entry = find_entry(&init->cpuid, 0x80000008);
	ASSERT_NE(NULL, entry);
	before = *entry;
	for (i = 0; i < ARRAY_SIZE(widths); i++) {
		entry->eax = (before.eax & ~TDX_CPUID_GPAW_MASK) | TDX_CPUID_GPAW(widths[i]);
		EXPECT_INIT_VM(EINVAL, &td, init);
	}
	entry->function = 0x80000009;
	EXPECT_INIT_VM(EINVAL, &td, init);
	*entry = before;

	/* A leaf and a subleaf that have no place in TD_PARAMS, and one twice. */
	entry = &init->cpuid.entries[nent];
	init->cpuid.nent = nent + 1;
	*entry = (struct kvm_cpuid_entry2) { .function = 0x40000000 };
	EXPECT_INIT_VM(EINVAL, &td, init);
	*entry = (struct kvm_cpuid_entry2) { .function = 0x80000008, .index = 1,
		.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX };
	EXPECT_INIT_VM(EINVAL, &td, init);
	*entry = init->cpuid.entries[0];
	EXPECT_INIT_VM(EINVAL, &td, init);
	init->cpuid.nent = nent;

	/* What KVM cannot do for a TD although the module could. */
	entry = find_entry(&init->cpuid, 7);
	if (entry) {
		before = *entry;
		entry->ebx = before.ebx | CPUID_7_EBX_HLE;
		EXPECT_INIT_VM(EINVAL, &td, init);
		entry->ebx = before.ebx | CPUID_7_EBX_RTM;
		EXPECT_INIT_VM(EINVAL, &td, init);
		entry->ebx = before.ebx;
		entry->ecx = before.ecx | CPUID_7_ECX_WAITPKG;
		EXPECT_INIT_VM(EINVAL, &td, init);
		*entry = before;
	} else {
		ksft_print_msg("TSX, WAITPKG not tried: CPUID 7 is not configurable\n");
	}

	EXPECT_INIT_VM(0, &td, init);
	td.step = TD_INITIALIZED;

	free(init);
	td_finish(&td);
}

/*
 * What only the TDX module can judge gets as far as TDH.MNG.INIT, so a whole
 * TD has to be undone.  User space learns which operand was wrong.
 */
TEST_F(tdx, init_vm_refused_by_module)
{
	struct kvm_tdx_init_vm *init;
	struct kvm_cpuid_entry2 *entry;
	struct td td;
	u64 hw_error;
	int i;

	td_create(&td, 1);
	init = vm_tdx_alloc_init_params(td.vm);

	/* CPUID.0x80000008.EDX is not configurable, and KVM does not look at it. */
	entry = find_entry(&init->cpuid, 0x80000008);
	ASSERT_NE(NULL, entry);
	entry->edx |= BIT(31);

	for (i = 0; i < 3; i++) {
		EXPECT_ERRNO(EINVAL, __tdx_ioctl(td.vm->fd, KVM_TDX_INIT_VM, 0, (u64)init,
						 &hw_error));
		EXPECT_EQ(TDX_OPERAND_INVALID, hw_error & TDX_STATUS_MASK);
		if (self->has_cgroup)
			EXPECT_EQ(0, tdx_read_charge());
	}

	entry->edx &= ~BIT(31);
	EXPECT_ERRNO(0, __tdx_ioctl(td.vm->fd, KVM_TDX_INIT_VM, 0, (u64)init, &hw_error));
	EXPECT_EQ(0, hw_error);
	td.step = TD_INITIALIZED;

	free(init);
	td_finish(&td);
}

/* The number of entries is read before them, and may have changed by then. */
static void test_nent_changes(struct __test_metadata *const _metadata, int change)
{
	const size_t head = offsetof(struct kvm_tdx_init_vm, cpuid);
	void *contents = map_pages(1, PROT_READ | PROT_WRITE);
	void *pages = map_pages(4, PROT_READ | PROT_WRITE);
	struct kvm_tdx_init_vm *init, *split;
	struct kvm_tdx_cmd cmd = { .id = KVM_TDX_INIT_VM };
	struct blocker blocker;
	struct call call;
	struct td td;

	td_create(&td, 1);
	init = vm_tdx_alloc_init_params(td.vm);

	/* KVM gets nent from the second page, then blocks on the first. */
	split = pages + getpagesize() - head;
	memcpy(&split->cpuid, &init->cpuid,
	       kvm_cpuid2_size(init->cpuid.nent + 1));
	memcpy(contents + getpagesize() - head, init, head);
	cmd.data = (u64)split;

	if (!blocker_init(&blocker, pages))
		SKIP(return, NO_BLOCKER);
	tdx_call_start(&call, td.vm->fd, &cmd);
	blocker_wait(&blocker);
	split->cpuid.nent += change;
	blocker_release(&blocker, contents);
	EXPECT_EQ(change ? EINVAL : 0, call_join(&call));
	EXPECT_EQ(0, cmd.hw_error);
	blocker_free(&blocker);

	/* Without a change the same way of reading is fine. */
	if (!change)
		td.step = TD_INITIALIZED;

	free(init);
	unmap_pages(contents, 1);
	unmap_pages(pages, 4);
	td_finish(&td);
}

TEST_F(tdx, init_vm_nent_grows)
{
	test_nent_changes(_metadata, 1);
}

TEST_F(tdx, init_vm_nent_shrinks)
{
	test_nent_changes(_metadata, -1);
}

TEST_F(tdx, init_vm_nent_stays)
{
	test_nent_changes(_metadata, 0);
}

TEST_F(tdx, init_vm_twice)
{
	struct kvm_tdx_init_vm *init;
	struct td td;
	int step;

	td_create_to(&td, 1, TD_INITIALIZED);
	init = vm_tdx_alloc_init_params(td.vm);
	for (step = TD_INITIALIZED; step < TD_NR_STEPS; step++) {
		td_advance(&td, step);
		EXPECT_INIT_VM(EINVAL, &td, init);
		if (self->has_cgroup)
			EXPECT_EQ(1, tdx_read_charge());
	}
	free(init);
	td_free(&td);
}

/* vCPUs and KVM_TDX_INIT_VCPU */

TEST_F(tdx, vcpu_too_early)
{
	struct kvm_vm *vm;
	struct td td;

	/* No TD yet, so no vCPU, so nothing to initialize. */
	td_create(&td, 1);
	EXPECT_ERRNO(EIO, __vm_ioctl(td.vm, KVM_CREATE_VCPU, (void *)0) < 0);
	EXPECT_ERRNO(EINVAL, __vm_tdx_ioctl(td.vm, KVM_TDX_INIT_VCPU, 0, 0));
	EXPECT_ERRNO(EINVAL, __vm_tdx_ioctl(td.vm, KVM_TDX_FINALIZE_VM, 0, 0));
	td_finish(&td);

	/* No local APICs in the kernel. */
	vm = vm_create_barebones_type(KVM_X86_TDX_VM);
	vm_tdx_init(vm);
	EXPECT_ERRNO(EINVAL, __vm_ioctl(vm, KVM_CREATE_VCPU, (void *)0) < 0);
	kvm_vm_free(vm);
}

TEST_F(tdx, init_vcpu)
{
	struct kvm_vcpu *vcpu;
	struct td td;
	int step;

	td_create_to(&td, 1, TD_INITIALIZED);

	/* The local APIC of a TD is an x2APIC, and this vCPU has none in its CPUID. */
	vcpu = __vm_vcpu_add(td.vm, 0);
	EXPECT_ERRNO(EINVAL, __vcpu_tdx_ioctl(vcpu, KVM_TDX_INIT_VCPU, 0, 0));
	vcpu_init_cpuid(vcpu, kvm_get_supported_cpuid());
	td.vcpus[0] = vcpu;
	td.step = TD_VCPUS_CREATED;

	for (step = TD_VCPUS_INITIALIZED; step < TD_NR_STEPS; step++) {
		td_advance(&td, step);
		EXPECT_ERRNO(EINVAL, __vcpu_tdx_ioctl(vcpu, KVM_TDX_INIT_VCPU, 0, 0));
	}
	td_free(&td);
}

/* A vCPU that is created after the TD is finalized can no longer become part of it. */
TEST_F(tdx, init_vcpu_after_finalize)
{
	struct kvm_vcpu *vcpu;
	struct td td;
	int fd;

	td_create_to(&td, 1, TD_FINALIZED);
	if (td_max_vcpus(&td) < 2) {
		td_free(&td);
		SKIP(return, "TDs have at most one vCPU here");
	}

	fd = __vm_ioctl(td.vm, KVM_CREATE_VCPU, (void *)1);
	if (fd < 0) {
		EXPECT_EQ(EIO, errno);
	} else {
		EXPECT_ERRNO(EINVAL, __tdx_ioctl(fd, KVM_TDX_INIT_VCPU, 0, 0, NULL));
		kvm_close(fd);
	}

	vcpu = td.vcpus[0];
	EXPECT_ERRNO(EINVAL, __vcpu_tdx_ioctl(vcpu, KVM_TDX_INIT_VCPU, 0, 0));
	td_free(&td);
}

/* KVM_TDX_GET_CPUID */

TEST_F(tdx, get_cpuid)
{
	void *none = map_pages(1, PROT_NONE);
	void *pages = map_pages(2, PROT_READ | PROT_WRITE);
	struct kvm_cpuid2 *cpuid, *read_only, *half;
	struct kvm_vcpu *vcpu;
	struct td td;
	u32 nent;

	td_create_to(&td, 1, TD_VCPUS_CREATED);
	vcpu = td.vcpus[0];

	EXPECT_ERRNO(EFAULT, __vcpu_tdx_ioctl(vcpu, KVM_TDX_GET_CPUID, 0, NULL));
	EXPECT_ERRNO(EFAULT, __vcpu_tdx_ioctl(vcpu, KVM_TDX_GET_CPUID, 0, none));

	cpuid = allocate_kvm_cpuid2(TDX_MAX_CPUID_ENTRIES);
	cpuid->nent = 0;
	EXPECT_ERRNO(E2BIG, __vcpu_tdx_ioctl(vcpu, KVM_TDX_GET_CPUID, 0, cpuid));
	nent = cpuid->nent;
	EXPECT_LT(0, nent);
	EXPECT_ERRNO(0, __vcpu_tdx_ioctl(vcpu, KVM_TDX_GET_CPUID, 0, cpuid));
	EXPECT_EQ(nent, cpuid->nent);

	read_only = map_read_only(cpuid, sizeof(*cpuid));
	EXPECT_ERRNO(EFAULT, __vcpu_tdx_ioctl(vcpu, KVM_TDX_GET_CPUID, 0, read_only));

	/* The number can be written, the entries cannot. */
	half = pages + getpagesize() - sizeof(*half);
	kvm_munmap(pages + getpagesize(), getpagesize());
	half->nent = TDX_MAX_CPUID_ENTRIES;
	EXPECT_ERRNO(EFAULT, __vcpu_tdx_ioctl(vcpu, KVM_TDX_GET_CPUID, 0, half));
	EXPECT_EQ(nent, half->nent);

	/* Which of two errors is reported: there are too many for a bad address. */
	half->nent = 0;
	EXPECT_ERRNO(E2BIG, __vcpu_tdx_ioctl(vcpu, KVM_TDX_GET_CPUID, 0, half));
	EXPECT_EQ(nent, half->nent);

	td_advance(&td, TD_FINALIZED);
	EXPECT_ERRNO(EINVAL, __vcpu_tdx_ioctl(vcpu, KVM_TDX_GET_CPUID, 0, cpuid));

	free(cpuid);
	unmap_pages(read_only, 1);
	unmap_pages(pages, 1);
	unmap_pages(none, 1);
	td_free(&td);
}

/* KVM_TDX_INIT_MEM_REGION */

#define EXPECT_REGION(_errno, _td, _region)					\
	EXPECT_ERRNO(_errno, __vcpu_tdx_init_mem_region((_td)->vcpus[0], 0, _region))

/* Refused as a whole: nothing was done, and KVM says so. */
static void expect_region_refused(struct __test_metadata *const _metadata, struct td *td,
				  int err, u64 source, u64 gpa, u64 nr_pages)
{
	struct kvm_tdx_init_mem_region region = {
		.source_addr = source,
		.gpa = gpa,
		.nr_pages = nr_pages,
	};

	int got = __vcpu_tdx_init_mem_region(td->vcpus[0], 0, &region) ? errno : 0;

	EXPECT_EQ(err, got) {
		TH_LOG("source 0x%lx, gpa 0x%lx, nr_pages 0x%lx: %s",
		       source, gpa, nr_pages, got ? strerror(got) : "success");
	}
	EXPECT_EQ(source, region.source_addr);
	EXPECT_EQ(gpa, region.gpa);
	EXPECT_EQ(nr_pages, region.nr_pages);
}

#define EXPECT_REFUSED(_errno, _td, _source, _gpa, _nr)				\
	expect_region_refused(_metadata, _td, _errno, (u64)(_source), _gpa, _nr)

/* Linux 7.2 asks for a source only when it has found the page of guest_memfd. */
static int errno_without_source(void)
{
	int major = 0, minor = 0;
	struct utsname name;

	TEST_ASSERT(!uname(&name) && sscanf(name.release, "%d.%d", &major, &minor) == 2,
		    "Which Linux is this?");
	return major == 7 && minor < 3 ? EOPNOTSUPP : EINVAL;
}

TEST_F(tdx, mem_region_address)
{
	const gpa_t gpa = TDX_TEST_GPA, other = OTHER_GPA;
	const u64 size = getpagesize();
	struct td td;

	td_create_to(&td, 1, TD_SLOT_ADDED);

	EXPECT_REFUSED(EINVAL, &td, td.source + 1, gpa, 1);
	EXPECT_REFUSED(EINVAL, &td, td.source + size / 2, gpa, 1);
	EXPECT_REFUSED(errno_without_source(), &td, NULL, gpa, 1);
	EXPECT_REFUSED(EINVAL, &td, td.source, gpa + 1, 1);
	EXPECT_REFUSED(EINVAL, &td, td.source, gpa + size / 2, 1);
	EXPECT_REFUSED(EINVAL, &td, td.source, gpa, 0);

	/* The end is not after the start. */
	EXPECT_REFUSED(EINVAL, &td, td.source, -size, 1);
	EXPECT_REFUSED(EINVAL, &td, td.source, gpa, -1);
	EXPECT_REFUSED(EINVAL, &td, td.source, gpa, BIT_ULL(52));
	EXPECT_REFUSED(EINVAL, &td, td.source, gpa, BIT_ULL(52) - 1);

	/* Not private, at the start or at the end. */
	EXPECT_REFUSED(EINVAL, &td, td.source, gpa | GPA_SHARED, 1);
	EXPECT_REFUSED(EINVAL, &td, td.source, GPA_SHARED, 1);
	EXPECT_REFUSED(EINVAL, &td, td.source, GPA_SHARED - size, 2);

	/* Private, and nothing there: beyond all memory, beyond all addresses. */
	EXPECT_REFUSED(EINVAL, &td, td.source, GPA_SHARED - size, 1);
	EXPECT_REFUSED(EINVAL, &td, td.source, GPA_SHARED * 2, 1);
	EXPECT_REFUSED(EINVAL, &td, td.source, BIT_ULL(63), 1);
	EXPECT_REFUSED(EINVAL, &td, td.source, other, 1);
	EXPECT_REFUSED(EINVAL, &td, td.source, gpa - size, 2);

	td_finish(&td);
}

TEST_F(tdx, mem_region_slot)
{
	struct td td;

	td_create_to(&td, 1, TD_SLOT_ADDED);

	/* Ordinary memory. */
	vm_userspace_mem_region_add(td.vm, VM_MEM_SRC_ANONYMOUS, OTHER_GPA, OTHER_SLOT,
				    OTHER_NR_PAGES, 0);
	EXPECT_REFUSED(EINVAL, &td, td.source, OTHER_GPA, 1);
	vm_mem_region_delete(td.vm, OTHER_SLOT);

	/* With guest_memfd, and (still) shared. */
	vm_userspace_mem_region_add(td.vm, VM_MEM_SRC_ANONYMOUS, OTHER_GPA, OTHER_SLOT,
				    OTHER_NR_PAGES, KVM_MEM_GUEST_MEMFD);
	EXPECT_REFUSED(EINVAL, &td, td.source, OTHER_GPA, 1);
	vm_mem_set_private(td.vm, OTHER_GPA, OTHER_NR_PAGES * getpagesize());
	vcpu_tdx_init_mem_region(td.vcpus[0], 0, td.source, OTHER_GPA, 1);

	td_finish(&td);
}

TEST_F(tdx, mem_region_source)
{
	void *none = map_pages(1, PROT_NONE);
	void *gone = map_pages(1, PROT_READ);
	struct td td;

	td_create_to(&td, 1, TD_SLOT_ADDED);
	unmap_pages(gone, 1);

	EXPECT_REFUSED(EFAULT, &td, none, TDX_TEST_GPA, 1);
	EXPECT_REFUSED(EFAULT, &td, gone, TDX_TEST_GPA, 1);
	EXPECT_REFUSED(EFAULT, &td, BIT_ULL(63), TDX_TEST_GPA, 1);

	unmap_pages(none, 1);
	td_finish(&td);
}

/* KVM tells how far it got, and from there user space can go on. */
TEST_F(tdx, mem_region_progress)
{
	const u64 size = getpagesize();
	void *hole = map_pages(3, PROT_READ | PROT_WRITE);
	struct kvm_tdx_init_mem_region region;
	struct td td;

	td_create_to(&td, 1, TD_SLOT_ADDED);
	vm_tdx_add_slot(td.vm, OTHER_SLOT, OTHER_GPA, OTHER_NR_PAGES);

	/* The source ends early. */
	memset(hole, 1, 3 * size);
	mprotect(hole + size, size, PROT_NONE);
	region = (struct kvm_tdx_init_mem_region) { (u64)hole, OTHER_GPA, 3 };
	EXPECT_REGION(EFAULT, &td, &region);
	EXPECT_EQ((u64)hole + size, region.source_addr);
	EXPECT_EQ(OTHER_GPA + size, region.gpa);
	EXPECT_EQ(2, region.nr_pages);

	/* The same again gets nowhere, and without the obstacle all the way. */
	EXPECT_REGION(EFAULT, &td, &region);
	EXPECT_EQ(2, region.nr_pages);
	mprotect(hole + size, size, PROT_READ);
	EXPECT_REGION(0, &td, &region);
	EXPECT_EQ((u64)hole + 3 * size, region.source_addr);
	EXPECT_EQ(OTHER_GPA + 3 * size, region.gpa);
	EXPECT_EQ(0, region.nr_pages);

	/*
	 * The slot ends early.  KVM forgets about nr_pages that have no bit
	 * left when they become bytes, so these are not out of range.
	 */
	region = (struct kvm_tdx_init_mem_region) { (u64)hole, OTHER_GPA + 3 * size,
						    BIT_ULL(52) + 1 };
	EXPECT_REGION(EINVAL, &td, &region);
	EXPECT_EQ((u64)hole + size, region.source_addr);
	EXPECT_EQ(OTHER_GPA + 4 * size, region.gpa);
	EXPECT_EQ(BIT_ULL(52), region.nr_pages);

	unmap_pages(hole, 3);
	td_finish(&td);
}

TEST_F(tdx, mem_region_twice)
{
	struct kvm_tdx_init_mem_region region;
	struct td td;

	td_create_to(&td, 1, TD_SLOT_ADDED);
	vm_tdx_add_slot(td.vm, OTHER_SLOT, OTHER_GPA, OTHER_NR_PAGES);

	vcpu_tdx_init_mem_region(td.vcpus[0], 0, td.source, OTHER_GPA + getpagesize(), 1);
	EXPECT_REFUSED(EIO, &td, td.source, OTHER_GPA + getpagesize(), 1);

	/* In the middle: the page before it is added, those behind it are not. */
	region = td_region(&td, 0, OTHER_GPA, 3);
	EXPECT_REGION(EIO, &td, &region);
	EXPECT_EQ(OTHER_GPA + getpagesize(), region.gpa);
	EXPECT_EQ(2, region.nr_pages);
	EXPECT_REFUSED(EIO, &td, td.source, OTHER_GPA, 1);
	vcpu_tdx_init_mem_region(td.vcpus[0], 0, td.source, OTHER_GPA + 2 * getpagesize(), 2);

	td_finish(&td);
}

TEST_F(tdx, mem_region_memory)
{
	struct kvm_tdx_init_mem_region region, *read_only;
	void *none = map_pages(1, PROT_NONE);
	struct td td;

	td_create_to(&td, 1, TD_SLOT_ADDED);
	vm_tdx_add_slot(td.vm, OTHER_SLOT, OTHER_GPA, OTHER_NR_PAGES);

	EXPECT_REGION(EFAULT, &td, NULL);
	EXPECT_REGION(EFAULT, &td, none);

	/* Before the first page there is nothing to write back. */
	region = td_region(&td, 0, OTHER_GPA, 0);
	read_only = map_read_only(&region, sizeof(region));
	EXPECT_REGION(EINVAL, &td, read_only);
	unmap_pages(read_only, 1);

	/* Afterwards it is too late to undo it. */
	region = td_region(&td, 0, OTHER_GPA, 2);
	read_only = map_read_only(&region, sizeof(region));
	EXPECT_REGION(EFAULT, &td, read_only);
	unmap_pages(read_only, 1);
	EXPECT_REFUSED(EIO, &td, td.source, OTHER_GPA, 1);
	EXPECT_REFUSED(EIO, &td, td.source, OTHER_GPA + getpagesize(), 1);

	unmap_pages(none, 1);
	td_finish(&td);
}

TEST_F(tdx, mem_region_state)
{
	struct td td;

	/* This vCPU is not initialized.  Nothing else is looked at. */
	td_create_to(&td, 1, TD_VCPUS_CREATED);
	vm_tdx_add_slot(td.vm, OTHER_SLOT, OTHER_GPA, OTHER_NR_PAGES);
	EXPECT_REGION(EINVAL, &td, NULL);
	EXPECT_REFUSED(EINVAL, &td, td.source, OTHER_GPA, 1);

	td_advance(&td, TD_FINALIZED);
	EXPECT_REGION(EINVAL, &td, NULL);
	EXPECT_REFUSED(EINVAL, &td, td.source, OTHER_GPA, 1);
	td_free(&td);
}

/* Signals */

static void on_signal(int signal)
{
}

static void catch_signal(void)
{
	struct sigaction action = { .sa_handler = on_signal };
	int ret;

	ret = sigaction(SIGUSR1, &action, NULL);
	TEST_ASSERT(!ret, __KVM_SYSCALL_ERROR("sigaction()", ret));
}

/*
 * A signal half-way through a region: KVM returns with EINTR and the rest of
 * the region.  Going on from there makes the same TD as without the signal.
 */
TEST_F(tdx, signal_in_mem_region)
{
	char undisturbed[TDX_MRTD_DIGITS + 1], disturbed[TDX_MRTD_DIGITS + 1];
	struct kvm_tdx_init_mem_region region;
	struct kvm_tdx_cmd cmd = {
		.id = KVM_TDX_INIT_MEM_REGION,
		.flags = KVM_TDX_MEASURE_MEMORY_REGION,
		.data = (u64)&region,
	};
	const u64 size = getpagesize();
	struct blocker blocker;
	void *source, *copy;
	struct call call;
	struct td td;
	bool known;

	catch_signal();
	td_create_to(&td, 1, TD_FINALIZED);
	known = tdx_read_mrtd(undisturbed);
	copy = map_pages(TDX_TEST_NR_PAGES, PROT_READ | PROT_WRITE);
	memcpy(copy, td.source, TDX_TEST_NR_PAGES * size);
	td_free(&td);

	/* All but the second page are there. */
	source = map_pages(TDX_TEST_NR_PAGES, PROT_READ | PROT_WRITE);
	if (!blocker_init(&blocker, source + size))
		SKIP(return, NO_BLOCKER);
	memcpy(source, copy, size);
	memcpy(source + 2 * size, copy + 2 * size, (TDX_TEST_NR_PAGES - 2) * size);

	td_create_to(&td, 1, TD_SLOT_ADDED);
	region = (struct kvm_tdx_init_mem_region) {
		.source_addr = (u64)source,
		.gpa = TDX_TEST_GPA,
		.nr_pages = TDX_TEST_NR_PAGES,
	};
	tdx_call_start(&call, td.vcpus[0]->fd, &cmd);
	blocker_wait(&blocker);
	pthread_kill(call.thread, SIGUSR1);
	blocker_release(&blocker, copy + size);
	EXPECT_EQ(EINTR, call_join(&call));
	EXPECT_EQ((u64)source + size, region.source_addr);
	EXPECT_EQ(TDX_TEST_GPA + size, region.gpa);
	EXPECT_EQ(TDX_TEST_NR_PAGES - 1, region.nr_pages);

	EXPECT_ERRNO(0, __vcpu_tdx_ioctl(td.vcpus[0], cmd.id, cmd.flags, cmd.data));
	EXPECT_EQ(0, region.nr_pages);

	td.step = TD_MEMORY_ADDED;
	td_advance(&td, TD_FINALIZED);
	if (known && tdx_read_mrtd(disturbed))
		EXPECT_STREQ(undisturbed, disturbed);
	if (!known)
		ksft_print_msg("measurements not compared: only the TD can read them\n");

	blocker_free(&blocker);
	unmap_pages(source, TDX_TEST_NR_PAGES);
	unmap_pages(copy, TDX_TEST_NR_PAGES);
	td_free(&td);
}

/*
 * A signal while another thread has the locks: the wait for them goes on, and
 * then not a single page is added.
 */
TEST_F(tdx, signal_before_mem_region)
{
	struct kvm_tdx_init_mem_region held, region;
	struct kvm_tdx_cmd hold = { .id = KVM_TDX_INIT_MEM_REGION, .data = (u64)&held };
	struct kvm_tdx_cmd cmd = { .id = KVM_TDX_INIT_MEM_REGION, .data = (u64)&region };
	void *page = map_pages(1, PROT_READ | PROT_WRITE);
	struct call holder, waiter;
	struct blocker blocker;
	struct td td;

	catch_signal();
	if (!blocker_init(&blocker, page))
		SKIP(return, NO_BLOCKER);

	td_create_to(&td, 1, TD_SLOT_ADDED);
	vm_tdx_add_slot(td.vm, OTHER_SLOT, OTHER_GPA, OTHER_NR_PAGES);
	held = (struct kvm_tdx_init_mem_region) { (u64)page, OTHER_GPA, 1 };
	region = td_region(&td, 0, OTHER_GPA + getpagesize(), 2);

	tdx_call_start(&holder, td.vcpus[0]->fd, &hold);
	blocker_wait(&blocker);
	tdx_call_start(&waiter, td.vcpus[0]->fd, &cmd);
	wait_for_lock_wait(waiter.tid);
	pthread_kill(waiter.thread, SIGUSR1);
	wait_for_lock_wait(waiter.tid);

	blocker_release(&blocker, td.source);
	EXPECT_EQ(0, call_join(&holder));
	EXPECT_EQ(0, held.nr_pages);
	EXPECT_EQ(EINTR, call_join(&waiter));
	EXPECT_EQ((u64)td.source, region.source_addr);
	EXPECT_EQ(OTHER_GPA + getpagesize(), region.gpa);
	EXPECT_EQ(2, region.nr_pages);
	EXPECT_REGION(0, &td, &region);

	blocker_free(&blocker);
	unmap_pages(page, 1);
	td_finish(&td);
}

/* Locks */

/* A vCPU that is being created waits for a TDX ioctl, and the other way round. */
TEST_F(tdx, create_vcpu_waits)
{
	struct kvm_tdx_init_mem_region held;
	struct kvm_tdx_cmd hold = { .id = KVM_TDX_INIT_MEM_REGION, .data = (u64)&held };
	void *page = map_pages(1, PROT_READ | PROT_WRITE);
	struct call holder, creator;
	struct blocker blocker;
	struct td td;

	if (!blocker_init(&blocker, page))
		SKIP(return, NO_BLOCKER);
	td_create_to(&td, 1, TD_SLOT_ADDED);
	if (td_max_vcpus(&td) < 2) {
		td_free(&td);
		SKIP(return, "TDs have at most one vCPU here");
	}
	vm_tdx_add_slot(td.vm, OTHER_SLOT, OTHER_GPA, OTHER_NR_PAGES);

	held = (struct kvm_tdx_init_mem_region) { (u64)page, OTHER_GPA, 1 };
	tdx_call_start(&holder, td.vcpus[0]->fd, &hold);
	blocker_wait(&blocker);
	call_start(&creator, td.vm->fd, KVM_CREATE_VCPU, (void *)1);
	wait_for_lock_wait(creator.tid);

	blocker_release(&blocker, td.source);
	EXPECT_EQ(0, call_join(&holder));
	EXPECT_EQ(0, call_join(&creator));

	/* Both are whole: the page is there, and so is the vCPU. */
	EXPECT_REFUSED(EIO, &td, td.source, OTHER_GPA, 1);
	TEST_ASSERT(!ioctl(creator.ret, KVM_SET_CPUID2, kvm_get_supported_cpuid()),
		    KVM_IOCTL_ERROR(KVM_SET_CPUID2, -1));
	EXPECT_ERRNO(0, __tdx_ioctl(creator.ret, KVM_TDX_INIT_VCPU, 0, 0, NULL));

	kvm_close(creator.ret);
	blocker_free(&blocker);
	unmap_pages(page, 1);
	td_finish(&td);
}

static void print_cpuid_entry(const char *when, const struct kvm_cpuid_entry2 *entry)
{
	fprintf(stderr, "# %s: leaf %#x subleaf %#x flags %#x: %08x %08x %08x %08x\n", when,
		entry->function, entry->index, entry->flags,
		entry->eax, entry->ebx, entry->ecx, entry->edx);
}

/*
 * KVM_TDX_GET_CPUID while another vCPU is busy: in C it waits for that one, in
 * Rust only for its own.  Both tell the same, then and later.
 */
TEST_F(tdx, get_cpuid_beside_a_busy_vcpu)
{
	struct kvm_cpuid2 *during = allocate_kvm_cpuid2(TDX_MAX_CPUID_ENTRIES);
	struct kvm_cpuid2 *after = allocate_kvm_cpuid2(TDX_MAX_CPUID_ENTRIES);
	void *page = map_pages(1, PROT_READ | PROT_WRITE);
	void *no_room = map_pages(1, PROT_READ | PROT_WRITE);
	struct kvm_tdx_cmd hold = { .id = KVM_TDX_GET_CPUID, .data = (u64)page };
	struct kvm_tdx_cmd cmds[] = { { .id = KVM_TDX_GET_CPUID, .data = (u64)during },
				      { .id = KVM_TDX_GET_CPUID, .data = (u64)after } };
	struct call holder, other, same;
	struct blocker blocker;
	struct td td;
	int i;

	if (!blocker_init(&blocker, page))
		SKIP(return, NO_BLOCKER);
	td_create(&td, 0);
	if (td_max_vcpus(&td) < 2) {
		td_free(&td);
		SKIP(return, "TDs have at most one vCPU here");
	}
	td_free(&td);
	td_create_to(&td, 2, TD_VCPUS_CREATED);

	tdx_call_start(&holder, td.vcpus[1]->fd, &hold);
	blocker_wait(&blocker);
	tdx_call_start(&other, td.vcpus[0]->fd, &cmds[0]);
	if (!variant->rust)
		wait_for_lock_wait(other.tid);
	else
		EXPECT_EQ(0, call_join(&other));
	tdx_call_start(&same, td.vcpus[1]->fd, &cmds[1]);
	wait_for_lock_wait(same.tid);

	blocker_release(&blocker, no_room);
	EXPECT_EQ(E2BIG, call_join(&holder));
	if (!variant->rust)
		EXPECT_EQ(0, call_join(&other));
	EXPECT_EQ(0, call_join(&same));
	EXPECT_LT(1, during->nent);
	EXPECT_EQ(during->nent, after->nent);
	for (i = 0; i < min(during->nent, after->nent); i++) {
		struct kvm_cpuid_entry2 *a = &during->entries[i], *b = &after->entries[i];

		EXPECT_EQ(0, memcmp(a, b, sizeof(*a))) {
			print_cpuid_entry("during", a);
			print_cpuid_entry("after", b);
		}
	}

	blocker_free(&blocker);
	unmap_pages(no_room, 1);
	unmap_pages(page, 1);
	free(after);
	free(during);
	td_advance(&td, TD_VCPUS_INITIALIZED);
	td_finish(&td);
}

/* vCPUs are created and initialized by a thread each, as a VMM may do. */
TEST_F(tdx, create_vcpus_at_once)
{
	struct call calls[TDX_MAX_VCPUS];
	struct kvm_tdx_cmd cmds[TDX_MAX_VCPUS];
	struct td td;
	int i, nr;

	/* C may lose a vCPU whose thread moves: init_vcpu_moves of tdx_state_guard_test. */
	if (!variant->rust)
		pin_self_to_any_cpu();

	td_create_to(&td, 0, TD_INITIALIZED);
	nr = min(td_max_vcpus(&td), TDX_MAX_VCPUS);

	for (i = 0; i < nr; i++)
		call_start(&calls[i], td.vm->fd, KVM_CREATE_VCPU, (void *)(long)i);
	for (i = 0; i < nr; i++)
		EXPECT_EQ(0, call_join(&calls[i]));

	for (i = 0; i < nr; i++) {
		int fd = calls[i].ret;

		TEST_ASSERT(!ioctl(fd, KVM_SET_CPUID2, kvm_get_supported_cpuid()),
			    KVM_IOCTL_ERROR(KVM_SET_CPUID2, -1));
		cmds[i] = (struct kvm_tdx_cmd) { .id = KVM_TDX_INIT_VCPU };
		tdx_call_start(&calls[i], fd, &cmds[i]);
	}
	for (i = 0; i < nr; i++) {
		EXPECT_EQ(0, call_join(&calls[i]));
		kvm_close(calls[i].fd);
	}

	vm_tdx_finalize(td.vm);
	td_free(&td);
}

/* Resources */

/* As many TDs as there are key ids.  One more has to wait for another to go. */
TEST_F_TIMEOUT(tdx, no_key_id_left, 120)
{
	struct kvm_tdx_init_vm *init;
	int nr, max = 1024;
	struct td *tds;
	u64 hw_error;

	tds = calloc(max, sizeof(*tds));
	kvm_set_files_rlimit(max);

	for (nr = 0; nr < max; nr++) {
		td_create(&tds[nr], 1);
		init = vm_tdx_alloc_init_params(tds[nr].vm);
		hw_error = -1;
		if (__tdx_ioctl(tds[nr].vm->fd, KVM_TDX_INIT_VM, 0, (u64)init, &hw_error))
			break;
		tds[nr].step = TD_INITIALIZED;
		free(init);
		if (self->has_cgroup)
			EXPECT_EQ(nr + 1, tdx_read_charge());
	}
	EXPECT_EQ(ENOSPC, errno);
	EXPECT_EQ(0, hw_error);
	ASSERT_LT(0, nr);
	ASSERT_GT(max, nr);
	if (self->has_cgroup)
		EXPECT_EQ(nr, tdx_read_charge());

	EXPECT_ERRNO(ENOSPC, __vm_tdx_ioctl(tds[nr].vm, KVM_TDX_INIT_VM, 0, init));
	td_free(&tds[nr / 2]);
	EXPECT_ERRNO(0, __vm_tdx_ioctl(tds[nr].vm, KVM_TDX_INIT_VM, 0, init));
	tds[nr].step = TD_INITIALIZED;
	td_advance(&tds[nr], TD_FINALIZED);
	if (self->has_cgroup)
		EXPECT_EQ(nr, tdx_read_charge());

	free(init);
	for (; nr >= 0; nr--)
		td_free(&tds[nr]);
	free(tds);
}

TEST_F(tdx, cgroup_limit)
{
	struct kvm_tdx_init_vm *init;
	struct td first, second;
	char path[128];
	u64 hw_error;
	int i;

	if (!self->has_cgroup)
		SKIP(return, "no misc cgroup that counts TDX");

	/*
	 * The C implementation gives back the charge that it did not get, so
	 * that the count falls short by one from then on, and the kernel warns
	 * when it falls below 0.
	 */
	if (!variant->rust)
		SKIP(return, "known flaw of the C code: it uncharges after a failed charge");

	snprintf(path, sizeof(path), "%s/misc.max", cgroup_path);
	TEST_ASSERT(!write_file(path, "tdx 1"), "Cannot write %s", path);

	td_create_to(&first, 1, TD_INITIALIZED);
	EXPECT_EQ(1, tdx_read_charge());

	td_create(&second, 1);
	init = vm_tdx_alloc_init_params(second.vm);
	for (i = 0; i < 3; i++) {
		EXPECT_ERRNO(EBUSY, __tdx_ioctl(second.vm->fd, KVM_TDX_INIT_VM, 0, (u64)init,
						&hw_error));
		EXPECT_EQ(0, hw_error);
		EXPECT_EQ(1, tdx_read_charge());
	}
	free(init);

	/* Either the first TD goes, or the limit. */
	td_free(&first);
	EXPECT_EQ(0, tdx_read_charge());
	td_advance(&second, TD_INITIALIZED);
	EXPECT_EQ(1, tdx_read_charge());

	TEST_ASSERT(!write_file(path, "tdx max"), "Cannot write %s", path);
	td_create_to(&first, 1, TD_INITIALIZED);
	EXPECT_EQ(2, tdx_read_charge());

	td_finish(&first);
	td_finish(&second);
}
