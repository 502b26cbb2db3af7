// SPDX-License-Identifier: GPL-2.0
/*
 * Take TDs from creation to the point where they could run, check at each step
 * what KVM lets user space do next, and destroy them at each step.
 */
#include "tdx_test.h"

#define TDX_ATTR_SEPT_VE_DISABLE	BIT_ULL(28)

#define CPUID_7_EBX_TSX			(BIT(4) | BIT(11))
#define CPUID_7_ECX_WAITPKG		BIT(5)

/* More TDs than this in a row leave marks in MemAvailable if each leaks a page. */
#define MEMORY_CHECK_ROUNDS		500

/* In KiB. */
static long tdx_mem_available(void)
{
	char *text = read_file("/proc/meminfo");
	char *found = text ? strstr(text, "MemAvailable:") : NULL;
	long kib;

	TEST_ASSERT(found, "No MemAvailable in /proc/meminfo");
	kib = strtol(found + strlen("MemAvailable:"), NULL, 10);
	free(text);
	return kib;
}

static struct kvm_cpuid2 *alloc_cpuid(int nr_entries)
{
	struct kvm_cpuid2 *cpuid = allocate_kvm_cpuid2(nr_entries);

	memset(cpuid, 0, kvm_cpuid2_size(nr_entries));
	cpuid->nent = nr_entries;
	return cpuid;
}

TEST_F(tdx, capabilities)
{
	struct kvm_tdx_capabilities *caps, *again;
	bool has_gpaw = false;
	struct td td;
	int i, j;

	td_create(&td, 1);
	caps = vm_tdx_get_capabilities(td.vm);

	EXPECT_NE(0, caps->supported_attrs & TDX_ATTR_SEPT_VE_DISABLE);
	/* x87 and SSE are part of every TD. */
	EXPECT_EQ(3, caps->supported_xfam & 3);
	for (i = 0; i < ARRAY_SIZE(caps->reserved); i++)
		EXPECT_EQ(0, caps->reserved[i]);

	EXPECT_LT(0, caps->cpuid.nent);
	EXPECT_EQ(0, caps->cpuid.padding);
	for (i = 0; i < caps->cpuid.nent; i++) {
		struct kvm_cpuid_entry2 *entry = &caps->cpuid.entries[i];

		for (j = 0; j < i; j++)
			EXPECT_FALSE(entry->function == caps->cpuid.entries[j].function &&
				     entry->index == caps->cpuid.entries[j].index);

		if (entry->function == 7 && !entry->index) {
			EXPECT_EQ(0, entry->ebx & CPUID_7_EBX_TSX);
			EXPECT_EQ(0, entry->ecx & CPUID_7_ECX_WAITPKG);
		}
		if (entry->function == 0x80000008) {
			EXPECT_EQ(TDX_CPUID_GPAW_MASK, entry->eax & TDX_CPUID_GPAW_MASK);
			has_gpaw = true;
		}
	}
	EXPECT_TRUE(has_gpaw);

	/* They belong to the host, so the state of the TD makes no difference. */
	for (i = TD_INITIALIZED; i < TD_NR_STEPS; i++) {
		td_advance(&td, i);
		again = vm_tdx_get_capabilities(td.vm);
		EXPECT_EQ(0, memcmp(caps, again, sizeof(*caps) + caps->cpuid.nent *
						 sizeof(caps->cpuid.entries[0])));
		free(again);
	}

	free(caps);
	td_free(&td);
}

/* KVM says no to what comes too early or too late, without harm to the TD. */
static void check_step(struct __test_metadata *const _metadata, struct td *td,
		       bool has_cgroup)
{
	struct kvm_tdx_init_mem_region region = {
		.source_addr = (u64)td->source,
		.gpa = TDX_TEST_GPA,
		.nr_pages = 1,
	};
	struct kvm_tdx_init_vm *init;
	struct kvm_cpuid2 *cpuid;

	if (td->step < TD_INITIALIZED) {
		EXPECT_ERRNO(EIO, __vm_ioctl(td->vm, KVM_CREATE_VCPU, (void *)0) < 0);
		EXPECT_ERRNO(EINVAL, __vm_tdx_ioctl(td->vm, KVM_TDX_FINALIZE_VM, 0, 0));
	} else {
		init = vm_tdx_alloc_init_params(td->vm);
		EXPECT_ERRNO(EINVAL, __vm_tdx_ioctl(td->vm, KVM_TDX_INIT_VM, 0, init));
		free(init);
	}

	if (has_cgroup)
		EXPECT_EQ(td->step >= TD_INITIALIZED, tdx_read_charge());

	if (td->step < TD_VCPUS_CREATED)
		return;

	/* A TD does not run before it is finalized. */
	if (td->step < TD_FINALIZED)
		EXPECT_ERRNO(EINVAL, __vcpu_run(td->vcpus[0]));

	if (td->step < TD_VCPUS_INITIALIZED)
		EXPECT_ERRNO(EINVAL, __vcpu_tdx_init_mem_region(td->vcpus[0], 0, &region));
	if (td->step >= TD_VCPUS_INITIALIZED)
		EXPECT_ERRNO(EINVAL, __vcpu_tdx_ioctl(td->vcpus[0], KVM_TDX_INIT_VCPU, 0, 0));

	cpuid = alloc_cpuid(TDX_MAX_CPUID_ENTRIES);
	EXPECT_ERRNO(td->step < TD_FINALIZED ? 0 : EINVAL,
		     __vcpu_tdx_ioctl(td->vcpus[0], KVM_TDX_GET_CPUID, 0, cpuid));
	free(cpuid);

	if (td->step == TD_FINALIZED) {
		EXPECT_ERRNO(EINVAL, __vcpu_tdx_init_mem_region(td->vcpus[0], 0, &region));
		EXPECT_ERRNO(EINVAL, __vm_tdx_ioctl(td->vm, KVM_TDX_FINALIZE_VM, 0, 0));
	}

	/* Whatever was refused has not been touched. */
	EXPECT_EQ((u64)td->source, region.source_addr);
	EXPECT_EQ(TDX_TEST_GPA, region.gpa);
	EXPECT_EQ(1, region.nr_pages);
}

static int max_vcpus(void)
{
	struct kvm_vm *vm = vm_create_tdx();
	int nr = vm_check_cap(vm, KVM_CAP_MAX_VCPUS);

	kvm_vm_free(vm);
	return min(nr, TDX_MAX_VCPUS);
}

static void test_lifecycle(struct __test_metadata *const _metadata, int nr_vcpus,
			   bool has_cgroup)
{
	struct td td;
	int step;

	td_create(&td, nr_vcpus);
	for (step = TD_CREATED; step < TD_NR_STEPS; step++) {
		td_advance(&td, step);
		check_step(_metadata, &td, has_cgroup);
	}
	td_free(&td);
}

TEST_F(tdx, one_vcpu)
{
	test_lifecycle(_metadata, 1, self->has_cgroup);
}

TEST_F(tdx, two_vcpus)
{
	if (max_vcpus() < 2)
		SKIP(return, "TDs have at most one vCPU here");

	test_lifecycle(_metadata, 2, self->has_cgroup);
}

/* A TD may have as many vCPUs as the host has CPUs, and not one more. */
TEST_F(tdx, too_many_vcpus)
{
	struct td td;
	int nr;

	td_create(&td, 0);
	nr = vm_check_cap(td.vm, KVM_CAP_MAX_VCPUS);
	if (nr > TDX_MAX_VCPUS) {
		td_free(&td);
		SKIP(return, "%d CPUs are too many to exceed", nr);
	}

	td.nr_vcpus = nr;
	td_advance(&td, TD_VCPUS_INITIALIZED);
	EXPECT_ERRNO(EINVAL, __vm_ioctl(td.vm, KVM_CREATE_VCPU, (void *)(long)nr) < 0);
	td_advance(&td, TD_FINALIZED);
	td_free(&td);
}

/* vCPUs may be initialized in any order, and memory added through any of them. */
TEST_F(tdx, vcpus_in_reverse)
{
	struct kvm_tdx_init_mem_region region;
	struct td td;

	if (max_vcpus() < 2)
		SKIP(return, "TDs have at most one vCPU here");

	td_create_to(&td, 2, TD_VCPUS_CREATED);
	vm_tdx_add_slot(td.vm, TDX_TEST_SLOT, TDX_TEST_GPA, TDX_TEST_NR_PAGES);

	vcpu_tdx_init(td.vcpus[1]);
	region = (struct kvm_tdx_init_mem_region) {
		.source_addr = (u64)td.source,
		.gpa = TDX_TEST_GPA,
		.nr_pages = 1,
	};
	EXPECT_ERRNO(EINVAL, __vcpu_tdx_init_mem_region(td.vcpus[0], 0, &region));
	EXPECT_EQ(1, region.nr_pages);
	vcpu_tdx_init_mem_region(td.vcpus[1], 0, td.source, TDX_TEST_GPA, 1);

	vcpu_tdx_init(td.vcpus[0]);
	vcpu_tdx_init_mem_region(td.vcpus[0], KVM_TDX_MEASURE_MEMORY_REGION,
				 td.source + getpagesize(), TDX_TEST_GPA + getpagesize(),
				 TDX_TEST_NR_PAGES - 1);
	vm_tdx_finalize(td.vm);
	td_free(&td);
}

TEST_F(tdx, teardown_at_each_step)
{
	int nr_vcpus = min(max_vcpus(), 2);
	struct td td;
	int step;

	page_trace_start();
	for (step = TD_CREATED; step < TD_NR_STEPS; step++) {
		td_create_to(&td, nr_vcpus, step);
		td_free(&td);
		if (self->has_cgroup)
			EXPECT_EQ(0, tdx_read_charge());
	}
	page_trace_check(_metadata);
}

/* A vCPU or a page of memory too few is no reason to leak the others. */
TEST_F(tdx, teardown_half_way)
{
	struct td td;

	if (max_vcpus() < 2)
		SKIP(return, "TDs have at most one vCPU here");

	td_create_to(&td, 2, TD_VCPUS_CREATED);
	vcpu_tdx_init(td.vcpus[1]);
	td_free(&td);

	td_create_to(&td, 2, TD_SLOT_ADDED);
	vcpu_tdx_init_mem_region(td.vcpus[1], 0, td.source, TDX_TEST_GPA, 1);
	td_free(&td);
}

/* The slots, and the memory with them, may go before the TD does. */
TEST_F(tdx, memory_removed_first)
{
	struct td td;

	td_create_to(&td, 1, TD_FINALIZED);
	vm_guest_mem_punch_hole(td.vm, TDX_TEST_GPA, getpagesize());
	vm_mem_region_delete(td.vm, TDX_TEST_SLOT);
	td_free(&td);
}

TEST_F(tdx, several_tds)
{
	struct td tds[3];
	int i, step;

	for (i = 0; i < ARRAY_SIZE(tds); i++)
		td_create(&tds[i], 1);

	for (step = TD_INITIALIZED; step < TD_NR_STEPS; step++) {
		for (i = 0; i < ARRAY_SIZE(tds); i++)
			td_advance(&tds[i], step);
	}

	if (self->has_cgroup)
		EXPECT_EQ(ARRAY_SIZE(tds), tdx_read_charge());

	for (i = 0; i < ARRAY_SIZE(tds); i++)
		td_free(&tds[i]);
}

/* What KVM reports of a TD's CPUID is what the TD was given. */
TEST_F(tdx, get_cpuid)
{
	struct kvm_cpuid2 *cpuid, *small;
	bool has_gpaw = false;
	struct td td;
	int i;

	td_create_to(&td, 1, TD_VCPUS_INITIALIZED);

	cpuid = alloc_cpuid(TDX_MAX_CPUID_ENTRIES);
	vcpu_tdx_ioctl(td.vcpus[0], KVM_TDX_GET_CPUID, 0, cpuid);

	EXPECT_LT(1, cpuid->nent);
	EXPECT_GT(TDX_MAX_CPUID_ENTRIES, cpuid->nent);
	EXPECT_EQ(0, cpuid->entries[0].function);
	for (i = 0; i < cpuid->nent; i++) {
		struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];

		if (i)
			EXPECT_LE(cpuid->entries[i - 1].function, entry->function);
		if (entry->function == 0x80000008) {
			EXPECT_EQ(TDX_CPUID_GPAW(48), entry->eax & TDX_CPUID_GPAW_MASK);
			has_gpaw = true;
		}
	}
	EXPECT_TRUE(has_gpaw);

	/* One entry too few: KVM says how many there are, and writes no other. */
	small = alloc_cpuid(TDX_MAX_CPUID_ENTRIES);
	memset(small->entries, 0xff, TDX_MAX_CPUID_ENTRIES * sizeof(small->entries[0]));
	small->nent = cpuid->nent - 1;
	EXPECT_ERRNO(E2BIG, __vcpu_tdx_ioctl(td.vcpus[0], KVM_TDX_GET_CPUID, 0, small));
	EXPECT_EQ(cpuid->nent, small->nent);
	EXPECT_EQ(0xffffffffu, small->entries[0].function);

	EXPECT_ERRNO(0, __vcpu_tdx_ioctl(td.vcpus[0], KVM_TDX_GET_CPUID, 0, small));
	EXPECT_EQ(0, memcmp(cpuid, small, kvm_cpuid2_size(cpuid->nent)));

	free(small);
	free(cpuid);
	td_advance(&td, TD_FINALIZED);
	td_free(&td);
}

static bool host_has_5level_ept(void)
{
	char *text = read_file("/proc/cpuinfo");
	bool found = text && strstr(text, " ept_5level");

	free(text);
	return found;
}

static void set_gpaw(struct kvm_tdx_init_vm *init, int bits)
{
	int i;

	for (i = 0; i < init->cpuid.nent; i++) {
		if (init->cpuid.entries[i].function != 0x80000008)
			continue;
		init->cpuid.entries[i].eax &= ~TDX_CPUID_GPAW_MASK;
		init->cpuid.entries[i].eax |= TDX_CPUID_GPAW(bits);
	}
}

/* The shared bit of a guest address is bit 51 if the TD has 52-bit addresses. */
TEST_F(tdx, gpaw_52)
{
	struct kvm_tdx_init_mem_region region;
	struct kvm_tdx_init_vm *init;
	struct td td;

	td_create(&td, 1);
	init = vm_tdx_alloc_init_params(td.vm);
	set_gpaw(init, 52);

	if (!host_has_5level_ept()) {
		EXPECT_ERRNO(EINVAL, __vm_tdx_ioctl(td.vm, KVM_TDX_INIT_VM, 0, init));
		td_advance(&td, TD_FINALIZED);
		goto out;
	}

	vm_tdx_ioctl(td.vm, KVM_TDX_INIT_VM, 0, init);
	td.step = TD_INITIALIZED;
	td_advance(&td, TD_SLOT_ADDED);

	region = (struct kvm_tdx_init_mem_region) {
		.source_addr = (u64)td.source,
		.gpa = TDX_TEST_GPA | BIT_ULL(51),
		.nr_pages = 1,
	};
	EXPECT_ERRNO(EINVAL, __vcpu_tdx_init_mem_region(td.vcpus[0], 0, &region));
	td_advance(&td, TD_FINALIZED);
out:
	free(init);
	td_free(&td);
}

static void build_td(struct td *td, u32 flags, int nr_calls)
{
	int i, nr = TDX_TEST_NR_PAGES / nr_calls;

	td_create_to(td, 1, TD_SLOT_ADDED);
	for (i = 0; i < nr_calls; i++)
		vcpu_tdx_init_mem_region(td->vcpus[0], flags,
					 td->source + i * nr * getpagesize(),
					 TDX_TEST_GPA + i * nr * getpagesize(), nr);
	vm_tdx_finalize(td->vm);
}

/* The measurement is that of the pages, however many calls it took to add them. */
TEST_F(tdx, measurement)
{
	char one[TDX_MRTD_DIGITS + 1], many[TDX_MRTD_DIGITS + 1], none[TDX_MRTD_DIGITS + 1];
	struct td td;
	bool known;

	build_td(&td, KVM_TDX_MEASURE_MEMORY_REGION, 1);
	known = tdx_read_mrtd(one);
	td_free(&td);

	build_td(&td, KVM_TDX_MEASURE_MEMORY_REGION, TDX_TEST_NR_PAGES);
	tdx_read_mrtd(many);
	td_free(&td);

	build_td(&td, 0, 1);
	tdx_read_mrtd(none);
	td_free(&td);

	if (!known)
		SKIP(return, "only the TD itself can read its measurement here");

	EXPECT_STREQ(one, many);
	EXPECT_STRNE(one, none);
}

TEST_F_TIMEOUT(tdx, many_rounds, 3600)
{
	long before = 0, after;
	struct td td;
	int i;

	for (i = 0; i < nr_rounds; i++) {
		td_create_to(&td, 1, TD_FINALIZED);
		td_free(&td);

		/* By then, whatever is kept to be used again is there. */
		if (i == nr_rounds / 10)
			before = tdx_mem_available();
	}
	after = tdx_mem_available();

	if (nr_rounds < MEMORY_CHECK_ROUNDS) {
		ksft_print_msg("memory not compared: %d rounds are too few to tell\n", nr_rounds);
		return;
	}

	/* The smallest leak would cost a page for each TD, so half of that is noise. */
	EXPECT_LT(before - after, nr_rounds / 2 * getpagesize() / 1024) {
		TH_LOG("%ld KiB fewer than before", before - after);
	}
	ksft_print_msg("MemAvailable fell by %ld KiB in %d rounds\n", before - after, nr_rounds);
}

#define MAX_LEAVES	256

struct leaf_counts {
	unsigned long calls[MAX_LEAVES];
	unsigned long errors[MAX_LEAVES];
};

/* How often each leaf of the emulated TDX module was called, and failed. */
static bool read_leaf_counts(struct leaf_counts *counts)
{
	char *text = read_file(TDX_EMULATOR_LEAVES), *line, *rest;
	unsigned long calls, errors;
	unsigned int leaf;

	memset(counts, 0, sizeof(*counts));
	if (!text)
		return false;

	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		TEST_ASSERT(sscanf(line, "%*s %u %lu %lu", &leaf, &calls, &errors) == 3 &&
			    leaf < MAX_LEAVES, "Cannot make sense of '%s'", line);
		counts->calls[leaf] += calls;
		counts->errors[leaf] += errors;
	}
	free(text);
	return true;
}

/* All that user space and the TDX module get to see of a TD's set-up. */
struct observation {
	struct kvm_tdx_capabilities *caps;
	struct kvm_cpuid2 *cpuid;
	char mrtd[TDX_MRTD_DIGITS + 1];
	struct leaf_counts counts;
};

static bool observe(struct observation *seen, bool rust)
{
	struct leaf_counts before;
	struct td td;
	bool known;
	int i;

	tdx_use_rust(rust);
	read_leaf_counts(&before);

	td_create_to(&td, 1, TD_VCPUS_INITIALIZED);
	seen->caps = vm_tdx_get_capabilities(td.vm);
	seen->cpuid = alloc_cpuid(TDX_MAX_CPUID_ENTRIES);
	vcpu_tdx_ioctl(td.vcpus[0], KVM_TDX_GET_CPUID, 0, seen->cpuid);
	td_advance(&td, TD_FINALIZED);
	known = tdx_read_mrtd(seen->mrtd);
	td_free(&td);

	read_leaf_counts(&seen->counts);
	for (i = 0; i < MAX_LEAVES; i++) {
		seen->counts.calls[i] -= before.calls[i];
		seen->counts.errors[i] -= before.errors[i];
	}
	return known;
}

/* The implementations differ in nothing that can be seen from outside. */
TEST(tdx_both_same)
{
	struct observation c = {}, rust = {};
	bool known;
	int i;

	if (!tdx_has_rust())
		SKIP(return, "KVM has no Rust implementation of TDX");

	/* vCPUs that move from CPU to CPU need more SEAMCALLs. */
	pin_self_to_any_cpu();
	known = observe(&c, false);
	observe(&rust, true);

	ASSERT_EQ(c.caps->cpuid.nent, rust.caps->cpuid.nent);
	EXPECT_EQ(0, memcmp(c.caps, rust.caps, sizeof(*c.caps) + c.caps->cpuid.nent *
					       sizeof(c.caps->cpuid.entries[0])));
	ASSERT_EQ(c.cpuid->nent, rust.cpuid->nent);
	EXPECT_EQ(0, memcmp(c.cpuid, rust.cpuid, kvm_cpuid2_size(c.cpuid->nent)));

	for (i = 0; i < MAX_LEAVES; i++) {
		EXPECT_EQ(c.counts.calls[i], rust.counts.calls[i]) {
			TH_LOG("Calls of leaf %d", i);
		}
		EXPECT_EQ(c.counts.errors[i], rust.counts.errors[i]) {
			TH_LOG("Errors of leaf %d", i);
		}
	}

	if (known)
		EXPECT_STREQ(c.mrtd, rust.mrtd);
	if (!known)
		ksft_print_msg("measurements, SEAMCALLs not compared: not told by the module\n");

	free(c.caps);
	free(c.cpuid);
	free(rust.caps);
	free(rust.cpuid);
}

/* A TD does not care which implementation takes it how far. */
TEST(tdx_both_mixed)
{
	char plain[TDX_MRTD_DIGITS + 1], mixed[TDX_MRTD_DIGITS + 1];
	bool known;
	int i, step, kernel_log;
	struct td td;

	if (!tdx_has_rust())
		SKIP(return, "KVM has no Rust implementation of TDX");

	/* Do they take the same locks in the same order? */
	kernel_log = kernel_log_open();
	tdx_use_rust(false);
	td_create_to(&td, 1, TD_FINALIZED);
	known = tdx_read_mrtd(plain);
	td_free(&td);

	for (i = 0; i < 2; i++) {
		td_create(&td, 1);
		for (step = TD_INITIALIZED; step < TD_NR_STEPS; step++) {
			tdx_use_rust((step ^ i) & 1);
			td_advance(&td, step);
		}
		if (known && tdx_read_mrtd(mixed))
			EXPECT_STREQ(plain, mixed);
		td_free(&td);
	}
	EXPECT_EQ(0, kernel_log_complaints(kernel_log));
}
