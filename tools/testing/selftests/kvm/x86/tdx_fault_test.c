// SPDX-License-Identifier: GPL-2.0
/*
 * What becomes of a TD when something fails beneath KVM's TDX ioctls: each
 * allocation, each SEAMCALL with each status that it can have, the task itself,
 * the CPU.  Afterwards no lock is held (lockdep would tell), nothing is lost but
 * what KVM gives up on purpose, and the VM is as usable as before or dead, the
 * same through C and through Rust.
 *
 * There are more SEAMCALLs to fail than a slow machine has time for, see -s.
 */
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>

#include "tdx_test.h"

/* A second piece of private memory, and one of shared memory that is logged. */
#define OTHER_SLOT		(TDX_TEST_SLOT + 1)
#define OTHER_GPA		(TDX_TEST_GPA * 2)
#define LOGGED_SLOT		(TDX_TEST_SLOT + 2)
#define LOGGED_GPA		(TDX_TEST_GPA * 4)

#define REGION_NR_PAGES		2

/* CPUs: TDs are made on one and, if there is another, used on that. */
static int cpus[2];

static void cpus_init(void)
{
	cpu_set_t set;
	int cpu, nr = 0;

	TEST_ASSERT(!sched_getaffinity(0, sizeof(set), &set), "sched_getaffinity() failed");
	for (cpu = 0; cpu < CPU_SETSIZE && nr < 2; cpu++) {
		if (CPU_ISSET(cpu, &set))
			cpus[nr++] = cpu;
	}
	if (nr == 1)
		cpus[1] = cpus[0];
}

static void go_to_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	TEST_ASSERT(!sched_setaffinity(0, sizeof(set), &set), "Cannot go to CPU %d", cpu);
}

/*
 * Operations: what is done to a TD while something fails.  A trial is a TD to
 * which one is done, again and again as long as it is the same afterwards.
 */

struct trial;

struct operation {
	const char *name;
	/* Returns 0 or the errno. */
	int (*run)(struct trial *trial);
	/* The step that the TD is in before. */
	enum td_step before;
	/* Success is one step. */
	bool is_step;
	/* Success changes nothing. */
	bool is_query;
	/* It allocates the pages that TDs and vCPUs are made of. */
	bool makes_pages;
	/* It is part of the end of a TD, of which KVM keeps what it could not take down. */
	bool is_end;
	/* What run_command() runs. */
	u32 id;
};

struct trial {
	const struct operation *operation;
	struct td td;
	/* What the command is about. */
	struct kvm_tdx_init_mem_region region;
	void *data;
	u64 hw_error;
	/* What was created, or is to be closed. */
	int fd;
};

static bool is_vcpu_command(u32 id)
{
	return id == KVM_TDX_INIT_VCPU || id == KVM_TDX_INIT_MEM_REGION ||
	       id == KVM_TDX_GET_CPUID;
}

static int run_command(struct trial *trial)
{
	u32 id = trial->operation->id;
	u32 flags = id == KVM_TDX_INIT_MEM_REGION ? KVM_TDX_MEASURE_MEMORY_REGION : 0;
	int fd = is_vcpu_command(id) ? trial->td.vcpus[0]->fd : trial->td.vm->fd;
	void *data = id == KVM_TDX_INIT_MEM_REGION ? &trial->region : trial->data;

	return __tdx_ioctl(fd, id, flags, (u64)data, &trial->hw_error) ? errno : 0;
}

static int run_create_vm(struct trial *trial)
{
	int kvm_fd = trial->td.vm->kvm_fd;

	trial->fd = ioctl(kvm_fd, KVM_CREATE_VM, KVM_X86_TDX_VM);
	return trial->fd < 0 ? errno : 0;
}

static int run_create_vcpu(struct trial *trial)
{
	trial->fd = __vm_ioctl(trial->td.vm, KVM_CREATE_VCPU, (void *)0);
	return trial->fd < 0 ? errno : 0;
}

/* Close the last file of the VM, which destroys it. */
static int run_destroy(struct trial *trial)
{
	int fd = trial->fd;

	trial->fd = -1;
	return close(fd) ? errno : 0;
}

/* The same, and before that let go of vCPUs and memory. */
static int run_free(struct trial *trial)
{
	td_free(&trial->td);
	return 0;
}

/* Take a page of memory from the TD. */
static int run_punch_hole(struct trial *trial)
{
	struct userspace_mem_region *region = memslot2region(trial->td.vm, TDX_TEST_SLOT);
	int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

	return fallocate(region->region.guest_memfd, mode, 0, getpagesize()) ? errno : 0;
}

static const struct operation create_vm = {
	"KVM_CREATE_VM", run_create_vm, TD_CREATED, .is_query = true };
static const struct operation create_vcpu = {
	"KVM_CREATE_VCPU", run_create_vcpu, TD_INITIALIZED };
static const struct operation destroy = {
	"the last close()", run_destroy, TD_FINALIZED };
static const struct operation tear_down = {
	"teardown", run_free, TD_FINALIZED, .is_end = true };
static const struct operation punch_hole = {
	"a hole in guest_memfd", run_punch_hole, TD_FINALIZED };
static const struct operation capabilities = {
	"KVM_TDX_CAPABILITIES", run_command, TD_CREATED, .is_query = true,
	.id = KVM_TDX_CAPABILITIES };
static const struct operation init_vm = {
	"KVM_TDX_INIT_VM", run_command, TD_CREATED, .is_step = true,
	.makes_pages = true, .id = KVM_TDX_INIT_VM };
static const struct operation init_vcpu = {
	"KVM_TDX_INIT_VCPU", run_command, TD_VCPUS_CREATED, .is_step = true,
	.makes_pages = true, .id = KVM_TDX_INIT_VCPU };
static const struct operation get_cpuid = {
	"KVM_TDX_GET_CPUID", run_command, TD_VCPUS_INITIALIZED, .is_query = true,
	.id = KVM_TDX_GET_CPUID };
static const struct operation init_mem_region = {
	"KVM_TDX_INIT_MEM_REGION", run_command, TD_SLOT_ADDED, .is_step = true,
	.id = KVM_TDX_INIT_MEM_REGION };
static const struct operation finalize_vm = {
	"KVM_TDX_FINALIZE_VM", run_command, TD_MEMORY_ADDED, .is_step = true,
	.id = KVM_TDX_FINALIZE_VM };

static void trial_init(struct trial *trial, const struct operation *operation)
{
	*trial = (struct trial) { .operation = operation, .fd = -1 };
}

/* Provide the TD, unless there still is one, and the data. */
static void trial_prepare(struct trial *trial)
{
	struct td *td = &trial->td;

	if (!td->vm)
		td_create_to(td, 1, trial->operation->before);

	if (trial->operation == &destroy) {
		trial->fd = dup(td->vm->fd);
		TEST_ASSERT(trial->fd >= 0, __KVM_SYSCALL_ERROR("dup()", trial->fd));
		td_free(td);
	}

	trial->hw_error = 0;
	free(trial->data);
	trial->data = NULL;
	if (trial->operation->run != run_command)
		return;

	switch (trial->operation->id) {
	case KVM_TDX_CAPABILITIES:
		trial->data = vm_tdx_get_capabilities(td->vm);
		break;
	case KVM_TDX_INIT_VM:
		trial->data = vm_tdx_alloc_init_params(td->vm);
		break;
	case KVM_TDX_GET_CPUID:
		trial->data = allocate_kvm_cpuid2(TDX_MAX_CPUID_ENTRIES);
		break;
	case KVM_TDX_INIT_MEM_REGION:
		trial->region = td_region(td, 0, TDX_TEST_GPA, REGION_NR_PAGES);
		break;
	}
}

/* How much of a failed operation was done, and stays done. */
static int trial_progress(struct trial *trial)
{
	if (trial->operation != &init_mem_region)
		return 0;
	return REGION_NR_PAGES - trial->region.nr_pages;
}

static void trial_free(struct trial *trial)
{
	if (trial->fd >= 0)
		kvm_close(trial->fd);
	trial->fd = -1;
	td_free(&trial->td);
	free(trial->data);
	trial->data = NULL;
}

/* The operation has failed half-way.  Do the rest of it, and the rest of the life cycle. */
static void trial_resume(struct __test_metadata *const _metadata, struct trial *trial)
{
	EXPECT_EQ(0, trial->operation->run(trial)) {
		TH_LOG("%s is not done the second time", trial->operation->name);
	}
	if (trial->td.vm && trial->operation->is_step)
		trial->td.step++;
	if (trial->td.vm)
		td_finish(&trial->td);
	trial_free(trial);
}

/* Out of memory: fault injection fails the n-th allocation of this thread. */

/* Fault injection of copies from and to user memory, which is not our aim. */
#define FAIL_USERCOPY	"/sys/kernel/debug/fail_usercopy/verbose"

static const struct {
	const char *path;
	const char *value;
	bool optional;
} fault_knobs[] = {
	{ "/sys/kernel/debug/failslab/ignore-gfp-wait", "N" },
	{ "/sys/kernel/debug/failslab/verbose", "0" },
	{ "/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N" },
	{ "/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem", "N" },
	{ "/sys/kernel/debug/fail_page_alloc/min-order", "0" },
	{ "/sys/kernel/debug/fail_page_alloc/verbose", "0" },
	{ FAIL_USERCOPY, "0", true },
};

static char *fault_knobs_before[ARRAY_SIZE(fault_knobs)];
static int fail_nth_fd;

static bool fault_injection_start(void)
{
	int i;

	fail_nth_fd = open("/proc/thread-self/fail-nth", O_RDWR);
	if (fail_nth_fd < 0)
		return false;

	for (i = 0; i < ARRAY_SIZE(fault_knobs); i++) {
		fault_knobs_before[i] = read_file(fault_knobs[i].path);
		if (write_file(fault_knobs[i].path, fault_knobs[i].value) &&
		    !fault_knobs[i].optional)
			return false;
	}
	return true;
}

static void fault_injection_stop(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(fault_knobs); i++) {
		if (fault_knobs_before[i])
			write_file(fault_knobs[i].path, fault_knobs_before[i]);
		free(fault_knobs_before[i]);
	}
	kvm_close(fail_nth_fd);
}

/*
 * Run the operation with the n-th allocation failing, and say whether there was
 * one.  Copies from and to user memory count as well if the kernel can fail
 * them, those of the read and the write below among them, but not before the
 * number is read.  So if that fails, the operation did not get to the n-th.
 */
static bool run_fail_nth(struct trial *trial, int n, int *error)
{
	char left[16] = {}, text[16];
	ssize_t nr_read;
	int ret;

	snprintf(text, sizeof(text), "%d", n);
	TEST_ASSERT(pwrite(fail_nth_fd, text, strlen(text), 0) > 0,
		    "Cannot write fail-nth: %s", strerror(errno));

	*error = trial->operation->run(trial);

	nr_read = pread(fail_nth_fd, left, sizeof(left) - 1, 0);
	ret = pwrite(fail_nth_fd, "0", 1, 0);
	if (ret < 0)
		ret = pwrite(fail_nth_fd, "0", 1, 0);
	TEST_ASSERT(ret > 0, "Cannot write fail-nth: %s", strerror(errno));

	return nr_read > 0 && !atoi(left);
}

/*
 * Fail each allocation of an operation in turn, as long as there is one more.
 * Where that is an error, it is ENOMEM, the TD has not changed, and the operation
 * is repeated with the next allocation failing, until it finally succeeds.
 *
 * KVM fills caches of objects as far as it can.  Of long rows of allocations
 * that nobody misses take a sample, but all again where such a row ends.
 */
static void test_out_of_memory(struct __test_metadata *const _metadata,
			       const struct operation *operation)
{
	bool copies_fail = !access(FAIL_USERCOPY, F_OK);
	int n, error, last = 0, nr_faults = 0, nr_failed = 0, nr_missed = 0;
	struct trial trial;
	bool more = true;

	if (!fault_injection_start())
		SKIP(return, "no fault injection for slab and page allocations");

	trial_init(&trial, operation);
	while (more) {
		n = last + 1 + nr_missed / 4;
		trial_prepare(&trial);
		more = run_fail_nth(&trial, n, &error);

		if (more)
			nr_faults++;
		if (more && error == ENOMEM) {
			nr_failed++;
			if (trial_progress(&trial))
				trial_resume(_metadata, &trial);
		} else if (more || n > last + 1) {
			/* Done nevertheless, or only the answer got lost. */
			EXPECT_TRUE(!error || (more && error == EFAULT && copies_fail)) {
				TH_LOG("Allocation %d: %s", n, strerror(error));
			}
			trial_free(&trial);
		}

		if (n > last + 1 && (!more || error)) {
			nr_missed = 0;
			more = true;
			continue;
		}
		nr_missed = error ? 0 : nr_missed + 1;
		last = n;
	}

	ksft_print_msg("%s: %d allocations failed, %d of them ENOMEM\n", operation->name,
		       nr_faults, nr_failed);
	EXPECT_EQ(0, error);
	if (trial.td.vm && operation->is_step) {
		trial.td.step++;
		td_finish(&trial.td);
	}
	trial_free(&trial);
	fault_injection_stop();
}

TEST_F_TIMEOUT(tdx, no_memory_create, 600)
{
	test_out_of_memory(_metadata, &create_vm);
	test_out_of_memory(_metadata, &create_vcpu);
}

TEST_F_TIMEOUT(tdx, no_memory_capabilities, 300)
{
	test_out_of_memory(_metadata, &capabilities);
}

/* These two allocate the pages that TDs are made of, so see that all are freed. */
TEST_F_TIMEOUT(tdx, no_memory_init, 600)
{
	page_trace_start();
	test_out_of_memory(_metadata, &init_vm);
	test_out_of_memory(_metadata, &init_vcpu);
	page_trace_check(_metadata);
}

TEST_F_TIMEOUT(tdx, no_memory_get_cpuid, 300)
{
	test_out_of_memory(_metadata, &get_cpuid);
}

TEST_F_TIMEOUT(tdx, no_memory_mem_region, 300)
{
	test_out_of_memory(_metadata, &init_mem_region);
}

TEST_F_TIMEOUT(tdx, no_memory_finalize, 300)
{
	test_out_of_memory(_metadata, &finalize_vm);
}

TEST_F_TIMEOUT(tdx, no_memory_destroy, 300)
{
	test_out_of_memory(_metadata, &destroy);
}

/*
 * What came of a fault.  Tests run in processes of their own, through C first,
 * so what is to be compared is in memory that they share.
 */
struct outcome {
	/* The fault: the status of the index-th call of a leaf, or the like. */
	char where[28];
	u32 index;
	u64 status;
	/* What came of it. */
	int error;
	int progress;
	u64 hw_error;
	long left_pages;
	long left_hkids;
	long left_charges;
	bool dead;
};

#define MAX_OUTCOMES	8192
#define MAX_TABLES	16

struct outcome_table {
	char test[40];
	int nr;
	struct outcome outcomes[MAX_OUTCOMES];
};

static struct outcome_table *tables_of_c;

static void __attribute__((constructor)) map_tables(void)
{
	tables_of_c = mmap(NULL, MAX_TABLES * sizeof(*tables_of_c), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	TEST_ASSERT(tables_of_c != MAP_FAILED, "Cannot map the tables of outcomes");
}

/* The outcomes of this test: where to put those of C, and what to compare others with. */
struct comparison {
	struct outcome_table *table;
	bool is_c;
	int next;
	int nr_same;
};

static void comparison_start(struct comparison *comparison, const char *test, bool rust)
{
	int i;

	*comparison = (struct comparison) { .is_c = !rust };
	for (i = 0; i < MAX_TABLES; i++) {
		struct outcome_table *table = &tables_of_c[i];

		if (comparison->is_c && !table->test[0])
			snprintf(table->test, sizeof(table->test), "%s", test);
		if (!strcmp(table->test, test)) {
			comparison->table = table;
			return;
		}
	}
	TEST_ASSERT(!comparison->is_c, "More than %d tests compare outcomes", MAX_TABLES);
}

static void outcome_print(const char *who, const struct outcome *outcome)
{
	ksft_print_msg("%s: %s #%u 0x%lx: %s, hw_error 0x%lx, VM %s, %d done\n",
		       who, outcome->where, outcome->index, outcome->status,
		       outcome->error ? strerrorname_np(outcome->error) : "success",
		       outcome->hw_error, outcome->dead ? "dead" : "alive",
		       outcome->progress);
	ksft_print_msg("left %ld pages, %ld HKIDs, %ld charges\n", outcome->left_pages,
		       outcome->left_hkids, outcome->left_charges);
}

static void outcome_compare(struct __test_metadata *const _metadata,
			    struct comparison *comparison, const struct outcome *outcome)
{
	struct outcome_table *table = comparison->table;
	const struct outcome *of_c;

	if (!table)
		return;

	TEST_ASSERT(comparison->next < MAX_OUTCOMES, "More than %d outcomes", MAX_OUTCOMES);
	if (comparison->is_c) {
		table->outcomes[comparison->next++] = *outcome;
		table->nr = comparison->next;
		return;
	}

	of_c = &table->outcomes[comparison->next];
	if (comparison->next++ < table->nr && !memcmp(of_c, outcome, sizeof(*outcome))) {
		comparison->nr_same++;
		return;
	}

	EXPECT_TRUE(false) {
		TH_LOG("Outcomes differ");
	}
	if (comparison->next <= table->nr)
		outcome_print("C", of_c);
	outcome_print("Rust", outcome);
}

static void comparison_end(struct __test_metadata *const _metadata,
			   struct comparison *comparison)
{
	if (comparison->is_c)
		return;
	if (!comparison->table) {
		ksft_print_msg("outcomes not compared: nothing was run through C\n");
		return;
	}
	ksft_print_msg("%d outcomes, %d the same through C\n", comparison->next,
		       comparison->nr_same);
	EXPECT_EQ(comparison->table->nr, comparison->next);
}

/* SEAMCALLs: the emulated TDX module answers a call with a status of our choice. */

#define TDX_INJECT		TDX_EMULATOR "/inject/"
#define NO_INJECTION		"no emulated TDX module that misbehaves on request"

/* What the kernel makes of it if there is no module that could answer. */
#define TDX_SEAMCALL_VMFAILINVALID	0x8000ff00ffff0000ull
#define TDX_RND_NO_ENTROPY		0x8000020300000000ull

/* Linux repeats a SEAMCALL that finds no entropy so many times. */
#define NR_RETRIES		10

#define MAX_LEAVES		64
#define MAX_STATUSES		64

/* KVM gives up HKIDs on purpose.  Twice as many, and none would be left. */
#define MAX_LEFT_HKIDS		14

/* Has the emulated module give back what TDs own that have no key any more. */
#define TDX_RECLAIM		TDX_EMULATOR "/reclaim"

struct leaf {
	char name[24];
	long nr_calls;
};

struct leaves {
	int nr;
	struct leaf leaves[MAX_LEAVES];
};

static void leaves_read(struct leaves *leaves)
{
	char *text = read_file(TDX_EMULATOR_LEAVES), *line, *rest;
	struct leaf *leaf;

	leaves->nr = 0;
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		TEST_ASSERT(leaves->nr < MAX_LEAVES, "More than %d leaves", MAX_LEAVES);
		leaf = &leaves->leaves[leaves->nr++];
		TEST_ASSERT(sscanf(line, "%23s %*s %ld", leaf->name, &leaf->nr_calls) == 2,
			    "Cannot make sense of %s", line);
	}
	free(text);
}

/* How often an operation that succeeds calls each leaf. */
static void leaves_of_operation(struct leaves *leaves, const struct operation *operation)
{
	struct leaves before;
	struct trial trial;
	int i, j;

	trial_init(&trial, operation);
	trial_prepare(&trial);
	leaves_read(&before);
	go_to_cpu(cpus[1]);
	TEST_ASSERT(!operation->run(&trial), "%s fails without a fault", operation->name);
	go_to_cpu(cpus[0]);
	leaves_read(leaves);
	trial_free(&trial);

	for (i = 0; i < leaves->nr; i++) {
		for (j = 0; j < before.nr; j++) {
			if (!strcmp(leaves->leaves[i].name, before.leaves[j].name))
				leaves->leaves[i].nr_calls -= before.leaves[j].nr_calls;
		}
	}
}

static int statuses_read(const struct leaf *leaf, u64 *statuses)
{
	char path[96], *text, *line, *rest;
	int i, nr = 0;

	snprintf(path, sizeof(path), TDX_INJECT "%s/statuses", leaf->name);
	text = read_file(path);
	TEST_ASSERT(text, "No %s", path);

	statuses[nr++] = TDX_SEAMCALL_VMFAILINVALID;
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		TEST_ASSERT(nr < MAX_STATUSES, "More than %d statuses", MAX_STATUSES);
		statuses[nr] = strtoull(line, NULL, 16);
		TEST_ASSERT(statuses[nr], "Cannot make sense of %s", line);
		for (i = 0; statuses[i] != statuses[nr]; i++)
			;
		if (i == nr)
			nr++;
	}
	free(text);
	return nr;
}

static void inject_set(const char *leaf, const char *knob, u64 value)
{
	char path[96], text[24];
	int ret;

	snprintf(path, sizeof(path), TDX_INJECT "%s/%s", leaf, knob);
	snprintf(text, sizeof(text), "0x%lx", value);
	ret = write_file(path, text);
	TEST_ASSERT(!ret, "Writing %s failed: %s", path, strerror(-ret));
}

static void inject_reset(void)
{
	write_file(TDX_INJECT "reset", "1");
}

/* The index-th call of the leaf from now on gets this status. */
static void inject(const struct leaf *leaf, u32 index, u64 status)
{
	inject_set(leaf->name, "status", status);
	inject_set(leaf->name, "space", index);
	inject_set(leaf->name, "times", status == TDX_RND_NO_ENTROPY ? NR_RETRIES : 1);
	inject_set(leaf->name, "probability", 100);
}

static long nr_injected(const struct leaf *leaf)
{
	char path[96];

	snprintf(path, sizeof(path), TDX_INJECT "%s/injected", leaf->name);
	return read_number(path, 0);
}

/* What TDs have of the module, and of the cgroup. */
struct accounting {
	long pages;
	long hkids;
	long charges;
};

static struct accounting accounting_read(void)
{
	char *text = read_file(TDX_EMULATOR_PAGES), *line, *rest;
	struct accounting accounting = { .charges = tdx_read_charge() };
	long number;

	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		if (sscanf(line, "pages_%*s %ld", &number) == 1)
			accounting.pages += number;
		else
			sscanf(line, "hkids %ld", &accounting.hkids);
	}
	free(text);
	return accounting;
}

/* KVM refuses each ioctl on a VM that it has given up. */
static bool vm_is_dead(struct kvm_vm *vm)
{
	return __vm_tdx_ioctl(vm, KVM_TDX_CMD_NR_MAX, 0, 0) && errno == EIO;
}

struct walk {
	struct comparison comparison;
	struct trial trial;
	struct accounting accounting;
	/* Those that there are, those to try, those that were tried, and what came of these. */
	int nr_faults;
	int nr_to_try;
	int nr_tried;
	int nr_not_reached;
	int nr_dead;
	int nr_tolerated;
	int nr_errors[256];
	int nr_too_dear;
	/* Of the pages left, those that the kernel had back, and the module still owned. */
	long nr_freed_owned;
	/* The kernel's pages that were seen to be allocated and, but for those left, freed. */
	long nr_pages;
	long left_pages;
	long left_hkids;
	long left_charges;
};

/*
 * Is KVM to give something up because the leaf fails?  Else nothing gets lost.
 * It forgets what it could not flush, and keeps what it could not tear down.
 */
static bool may_give_up(const struct operation *operation, const struct leaf *leaf)
{
	return operation->is_end || !strcmp(leaf->name, "VP.FLUSH");
}

/*
 * Linux 7.3 gives a page of memory back to the kernel even if one of these fails,
 * and the module still owns it: the next TD that happens to get the page fails.
 */
static bool frees_owned_page(const struct leaf *leaf)
{
	return !strcmp(leaf->name, "MEM.RANGE.BLOCK") ||
	       !strcmp(leaf->name, "MEM.TRACK") ||
	       !strcmp(leaf->name, "MEM.PAGE.REMOVE");
}

/*
 * Take back from the module what KVM left to it: of a TD without a key that is
 * all.  KVM may have freed some of it, so do that before anybody else gets it.
 */
static void walk_reclaim(struct __test_metadata *const _metadata, struct walk *walk,
			 const struct outcome *outcome)
{
	struct accounting now;

	TEST_ASSERT(!write_file(TDX_RECLAIM, "1"), "Cannot write " TDX_RECLAIM);
	now = accounting_read();
	EXPECT_EQ(walk->accounting.pages - outcome->left_pages, now.pages);
	EXPECT_EQ(walk->accounting.hkids, now.hkids);
	walk->accounting = now;
}

/* See how much is left once the TD is gone, and take that for granted from then on. */
static void walk_account(struct __test_metadata *const _metadata, struct walk *walk,
			 const struct leaf *leaf, struct outcome *outcome)
{
	struct accounting now = accounting_read();

	outcome->left_pages = now.pages - walk->accounting.pages;
	outcome->left_hkids = now.hkids - walk->accounting.hkids;
	outcome->left_charges = now.charges - walk->accounting.charges;
	walk->left_pages += outcome->left_pages;
	walk->left_hkids += outcome->left_hkids;
	walk->left_charges += outcome->left_charges;
	walk->accounting = now;

	if (frees_owned_page(leaf)) {
		/* The TD's key is free, one page is lost, and the TDR that goes after it. */
		EXPECT_TRUE(!outcome->left_pages || outcome->left_pages == 2);
		EXPECT_TRUE(!outcome->left_hkids && !outcome->left_charges) {
			outcome_print("lost", outcome);
		}
		walk->nr_freed_owned += outcome->left_pages > 0;
	} else if (!may_give_up(walk->trial.operation, leaf)) {
		EXPECT_TRUE(!outcome->left_pages && !outcome->left_hkids &&
			    !outcome->left_charges) {
			outcome_print("lost", outcome);
		}
	}
	if (outcome->left_pages && !outcome->left_hkids)
		walk_reclaim(_metadata, walk, outcome);
}

static void walk_one(struct __test_metadata *const _metadata, struct walk *walk,
		     const struct leaf *leaf, u32 index, u64 status)
{
	struct outcome outcome = { .index = index, .status = status };
	struct trial *trial = &walk->trial;
	const struct operation *operation = trial->operation;

	snprintf(outcome.where, sizeof(outcome.where), "%s", leaf->name);
	trial_prepare(trial);
	/* The vCPU comes from another CPU, even if it was used before. */
	if (trial->td.step >= TD_VCPUS_CREATED && trial->td.vm)
		__vcpu_ioctl(trial->td.vcpus[0], KVM_GET_TSC_KHZ, NULL);

	inject(leaf, index, status);
	go_to_cpu(cpus[1]);
	outcome.error = operation->run(trial);
	go_to_cpu(cpus[0]);
	walk->nr_tried++;
	if (!nr_injected(leaf))
		walk->nr_not_reached++;
	inject_reset();

	outcome.hw_error = trial->hw_error;
	outcome.progress = trial_progress(trial);
	outcome.dead = trial->td.vm && vm_is_dead(trial->td.vm);

	walk->nr_dead += outcome.dead;
	walk->nr_tolerated += !outcome.error && !outcome.dead;
	walk->nr_errors[outcome.error]++;

	if (!outcome.dead && outcome.error && outcome.progress)
		trial_resume(_metadata, trial);
	else if (outcome.dead || (!outcome.error && !operation->is_query))
		trial_free(trial);

	if (!trial->td.vm)
		walk_account(_metadata, walk, leaf, &outcome);
	outcome_compare(_metadata, &walk->comparison, &outcome);
}

/* Is this one of those to try? */
static bool is_chosen(int fault)
{
	return fault % fault_stride == 0 &&
	       fault / fault_stride % fault_parts == fault_part;
}

/* All statuses of all calls of a leaf, or one in so many. */
static void walk_leaf(struct __test_metadata *const _metadata, struct walk *walk,
		      const struct leaf *leaf)
{
	long nr_pages, nr_left, left_before = walk->left_pages;
	struct outcome end = {};
	u64 statuses[MAX_STATUSES];
	int i, nr_statuses;
	u32 index;

	if (!leaf->nr_calls)
		return;
	if (walk->trial.operation->makes_pages)
		page_trace_start();
	nr_statuses = statuses_read(leaf, statuses);
	for (index = 1; index <= leaf->nr_calls; index++) {
		for (i = 0; i < nr_statuses; i++) {
			if (!is_chosen(walk->nr_faults++))
				continue;
			if (walk->left_hkids >= MAX_LEFT_HKIDS) {
				walk->nr_too_dear++;
				continue;
			}
			walk_one(_metadata, walk, leaf, index, statuses[i]);
			if (walk->nr_tried % 100 == 0) {
				ksft_print_msg("%s: %d of %d\n", _metadata->name,
					       walk->nr_tried, walk->nr_to_try);
				fflush(stdout);
			}
		}
	}

	/* The last one that only failed: the TD is as it was. */
	if (walk->trial.td.vm && !walk->trial.operation->is_query) {
		trial_prepare(&walk->trial);
		trial_resume(_metadata, &walk->trial);
	}
	trial_free(&walk->trial);
	snprintf(end.where, sizeof(end.where), "%s, the end", leaf->name);
	walk_account(_metadata, walk, leaf, &end);
	outcome_compare(_metadata, &walk->comparison, &end);

	/* Of the kernel's pages those are missing that the module still has. */
	if (!page_trace_started)
		return;
	nr_left = page_trace_stop(&nr_pages);
	page_trace_started = false;
	if (nr_left < 0)
		return;
	EXPECT_EQ(walk->left_pages - left_before, nr_left);
	walk->nr_pages += nr_pages;
}

static void walk_print(struct walk *walk, const char *name, const struct leaves *leaves)
{
	char errors[256] = "";
	int i, nr_leaves = 0;

	for (i = 0; i < leaves->nr; i++)
		nr_leaves += leaves->leaves[i].nr_calls > 0;
	for (i = 1; i < ARRAY_SIZE(walk->nr_errors); i++) {
		if (walk->nr_errors[i])
			snprintf(errors + strlen(errors), sizeof(errors) - strlen(errors),
				 ", %d %s", walk->nr_errors[i], strerrorname_np(i));
	}
	ksft_print_msg("%s: %d leaves, %d of %d faults, %d not reached\n", name, nr_leaves,
		       walk->nr_tried, walk->nr_faults, walk->nr_not_reached);
	ksft_print_msg("%s: %d faults killed the VM, %d were tolerated%s\n", name,
		       walk->nr_dead, walk->nr_tolerated, errors);
	ksft_print_msg("%s: KVM gave up %ld pages, %ld HKIDs, %ld charges\n", name,
		       walk->left_pages, walk->left_hkids, walk->left_charges);
	if (walk->nr_freed_owned)
		ksft_print_msg("%s: KVM freed %ld of these pages, which the module owned\n",
			       name, walk->nr_freed_owned);
	if (walk->nr_pages)
		ksft_print_msg("%s: %ld pages allocated, all but those left are freed\n",
			       name, walk->nr_pages);
	if (walk->nr_too_dear)
		ksft_print_msg("%s: %d faults not tried, they would cost the last HKIDs\n",
			       name, walk->nr_too_dear);
}

/* Let each SEAMCALL of an operation fail with each status. */
static void test_seamcalls(struct __test_metadata *const _metadata, bool rust,
			   const struct operation *operation)
{
	u64 statuses[MAX_STATUSES];
	static struct walk walk;
	struct leaves leaves;
	int i, nr = 0;

	if (access(TDX_INJECT "MNG.INIT/statuses", F_OK))
		SKIP(return, NO_INJECTION);

	/* KVM warns once in each place where no SEAMCALL may fail. */
	kernel_may_warn = true;
	cpus_init();
	go_to_cpu(cpus[0]);
	inject_reset();

	leaves_of_operation(&leaves, operation);
	walk.accounting = accounting_read();
	trial_init(&walk.trial, operation);
	comparison_start(&walk.comparison, _metadata->name, rust);
	for (i = 0; i < leaves.nr; i++) {
		if (leaves.leaves[i].nr_calls)
			nr += leaves.leaves[i].nr_calls *
			      statuses_read(&leaves.leaves[i], statuses);
	}
	for (i = 0; i < nr; i++)
		walk.nr_to_try += is_chosen(i);

	for (i = 0; i < leaves.nr; i++)
		walk_leaf(_metadata, &walk, &leaves.leaves[i]);
	trial_free(&walk.trial);

	walk_print(&walk, operation->name, &leaves);
	comparison_end(_metadata, &walk.comparison);
	EXPECT_LT(0, walk.nr_tried);
	EXPECT_EQ(0, walk.nr_not_reached);

	/* Of what KVM has given up, nothing comes back. */
	left_charges = walk.left_charges;
	left_pages = read_file(TDX_EMULATOR_PAGES);
}

TEST_F_TIMEOUT(tdx, seamcalls_init_vm, INT_MAX)
{
	test_seamcalls(_metadata, variant->rust, &init_vm);
}

TEST_F_TIMEOUT(tdx, seamcalls_init_vcpu, INT_MAX)
{
	test_seamcalls(_metadata, variant->rust, &init_vcpu);
}

TEST_F_TIMEOUT(tdx, seamcalls_get_cpuid, INT_MAX)
{
	test_seamcalls(_metadata, variant->rust, &get_cpuid);
}

TEST_F_TIMEOUT(tdx, seamcalls_init_mem_region, INT_MAX)
{
	test_seamcalls(_metadata, variant->rust, &init_mem_region);
}

TEST_F_TIMEOUT(tdx, seamcalls_finalize_vm, INT_MAX)
{
	test_seamcalls(_metadata, variant->rust, &finalize_vm);
}

TEST_F_TIMEOUT(tdx, seamcalls_punch_hole, INT_MAX)
{
	test_seamcalls(_metadata, variant->rust, &punch_hole);
}

TEST_F_TIMEOUT(tdx, seamcalls_tear_down, INT_MAX)
{
	test_seamcalls(_metadata, variant->rust, &tear_down);
}

/*
 * Fatal signals.  The victim is a process that only shares the memory, so that
 * the others live on to tell.
 */

enum rung {
	/* It waits for a lock that somebody else has, ... */
	RUNG_VM_LOCK,
	RUNG_VCPU_MUTEX,
	RUNG_SLOTS_LOCK,
	/* ... or for memory of its own: the command, its data, the contents of pages. */
	RUNG_COMMAND,
	RUNG_DATA,
	RUNG_SOURCE,
};

static const char * const rung_names[] = {
	"kvm->lock", "vcpu->mutex", "kvm->slots_lock", "command", "data", "source",
};

struct victim {
	int fd;
	unsigned long request;
	void *arg;
	u64 stack[1024] __aligned(16);
};

static int victim_process(void *arg)
{
	struct victim *victim = arg;

	/* It does not come back from this one, and would do no harm if it did. */
	ioctl(victim->fd, victim->request, victim->arg);
	_exit(0);
}

static pid_t victim_start(struct victim *victim)
{
	pid_t pid;

	pid = clone(victim_process, victim->stack + ARRAY_SIZE(victim->stack),
		    CLONE_VM | SIGCHLD, victim);
	TEST_ASSERT(pid > 0, __KVM_SYSCALL_ERROR("clone()", pid));
	return pid;
}

/* Is the process a zombie, or will it be in a moment? */
static bool dies_soon(pid_t pid)
{
	siginfo_t info;
	int i;

	for (i = 0; i < 20; i++) {
		info.si_pid = 0;
		TEST_ASSERT(!waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT),
			    "waitid() failed: %s", strerror(errno));
		if (info.si_pid)
			return true;
		usleep(10000);
	}
	return false;
}

/* Whoever holds a lock. */
struct holder {
	struct call call;
	struct kvm_tdx_cmd cmd;
	struct kvm_tdx_init_mem_region region;
	struct kvm_dirty_log log;
};

static void holder_start(struct holder *holder, struct td *td, enum rung at, void *page)
{
	struct kvm_vcpu *vcpu = td->nr_vcpus ? td->vcpus[td->nr_vcpus - 1] : NULL;

	switch (at) {
	case RUNG_VM_LOCK:
		if (td->step == TD_CREATED) {
			holder->cmd = (struct kvm_tdx_cmd) { .id = KVM_TDX_INIT_VM,
							     .data = (u64)page };
			tdx_call_start(&holder->call, td->vm->fd, &holder->cmd);
			break;
		}
		holder->region = (struct kvm_tdx_init_mem_region) { (u64)page, OTHER_GPA, 1 };
		holder->cmd = (struct kvm_tdx_cmd) { .id = KVM_TDX_INIT_MEM_REGION,
						     .data = (u64)&holder->region };
		tdx_call_start(&holder->call, vcpu->fd, &holder->cmd);
		break;
	case RUNG_VCPU_MUTEX:
		holder->cmd = (struct kvm_tdx_cmd) { .id = KVM_TDX_GET_CPUID,
						     .data = (u64)page };
		tdx_call_start(&holder->call, vcpu->fd, &holder->cmd);
		break;
	case RUNG_SLOTS_LOCK:
		holder->log = (struct kvm_dirty_log) { .slot = LOGGED_SLOT,
						       .dirty_bitmap = page };
		call_start(&holder->call, td->vm->fd, KVM_GET_DIRTY_LOG, &holder->log);
		break;
	default:
		TEST_FAIL("Nobody can hold %s", rung_names[at]);
	}
}

/* A TD with all that is needed to block an operation on one of its vCPUs. */
static void killed_prepare(struct trial *trial, int nr_vcpus, enum rung at)
{
	enum td_step before = trial->operation->before;
	struct td *td = &trial->td;

	if (trial->operation == &create_vcpu)
		before = TD_VCPUS_INITIALIZED;
	td_create_to(td, nr_vcpus, before);
	if (trial->operation == &init_vcpu)
		vcpu_tdx_init(td->vcpus[nr_vcpus - 1]);
	if (at == RUNG_VM_LOCK && before != TD_CREATED)
		vm_tdx_add_slot(td->vm, OTHER_SLOT, OTHER_GPA, 1);
	if (at == RUNG_SLOTS_LOCK)
		vm_userspace_mem_region_add(td->vm, VM_MEM_SRC_ANONYMOUS, LOGGED_GPA,
					    LOGGED_SLOT, 1, KVM_MEM_LOG_DIRTY_PAGES);
	trial_prepare(trial);
}

static void victim_init(struct victim *victim, struct trial *trial, struct kvm_tdx_cmd *cmd)
{
	u32 id = trial->operation->id;

	if (trial->operation == &create_vcpu) {
		*victim = (struct victim) { trial->td.vm->fd, KVM_CREATE_VCPU,
					    (void *)(long)trial->td.nr_vcpus };
		return;
	}

	cmd->id = id;
	cmd->data = id == KVM_TDX_INIT_MEM_REGION ? (u64)&trial->region : (u64)trial->data;
	victim->fd = is_vcpu_command(id) ? trial->td.vcpus[0]->fd : trial->td.vm->fd;
	victim->request = KVM_MEMORY_ENCRYPT_OP;
	victim->arg = cmd;
}

/* What the operation does now tells whether the victim had done it. */
static int run_again(struct trial *trial)
{
	int fd;

	if (trial->operation != &create_vcpu)
		return run_command(trial);

	fd = __vm_ioctl(trial->td.vm, KVM_CREATE_VCPU, (void *)(long)trial->td.nr_vcpus);
	if (fd < 0)
		return errno;
	kvm_close(fd);
	return 0;
}

static struct outcome test_killed_at(struct __test_metadata *const _metadata,
				     const struct operation *operation, enum rung at)
{
	bool by_itself = at >= RUNG_COMMAND;
	void *page = map_pages(1, PROT_READ | PROT_WRITE);
	void *contents = map_pages(1, PROT_READ | PROT_WRITE);
	int nr_vcpus = operation == &create_vcpu || operation == &get_cpuid ? 1 : 2;
	struct outcome outcome = {};
	struct holder holder = {};
	struct kvm_tdx_cmd cmd = {};
	struct blocker blocker;
	struct victim victim = {};
	struct trial trial;
	struct call probe;
	pid_t pid;

	snprintf(outcome.where, sizeof(outcome.where), "%s %s", operation->name + 4,
		 rung_names[at]);
	TEST_ASSERT(blocker_init(&blocker, page), "No userfaultfd any more");
	trial_init(&trial, operation);
	killed_prepare(&trial, nr_vcpus, at);
	victim_init(&victim, &trial, &cmd);

	if (!by_itself) {
		holder_start(&holder, &trial.td, at, page);
		blocker_wait(&blocker);
	} else if (at == RUNG_COMMAND) {
		victim.arg = page;
	} else if (at == RUNG_DATA) {
		cmd.data = (u64)page;
	} else {
		trial.region.source_addr = (u64)page;
	}

	pid = victim_start(&victim);
	if (by_itself)
		blocker_wait(&blocker);
	else
		wait_for_lock_wait(pid);
	kill(pid, SIGKILL);
	outcome.dead = dies_soon(pid);

	/* It has no lock any more, or at least waits for the others to finish. */
	if (outcome.dead && at != RUNG_VCPU_MUTEX)
		EXPECT_TRUE(by_itself);
	if (outcome.dead && (by_itself || nr_vcpus > 1)) {
		call_start(&probe, trial.td.vm->fd, KVM_CREATE_VCPU, (void *)0);
		EXPECT_NE(0, call_join(&probe));
		if (trial.td.step >= TD_VCPUS_CREATED) {
			call_start(&probe, trial.td.vcpus[0]->fd, KVM_GET_TSC_KHZ, NULL);
			EXPECT_EQ(0, call_join(&probe));
		}
	}

	if (by_itself) {
		wait_for_death(pid, SIGKILL);
		trial_prepare(&trial);
	} else {
		blocker_release(&blocker, contents);
		call_join(&holder.call);
		wait_for_death(pid, SIGKILL);
	}

	outcome.error = run_again(&trial);
	EXPECT_FALSE(vm_is_dead(trial.td.vm));
	if (operation->is_step)
		trial.td.step = operation->before + 1;
	td_finish(&trial.td);
	trial_free(&trial);

	blocker_free(&blocker);
	unmap_pages(contents, 1);
	unmap_pages(page, 1);
	return outcome;
}

#define RUNG(name)	BIT(RUNG_##name)
#define ALL_LOCKS	(RUNG(VM_LOCK) | RUNG(VCPU_MUTEX) | RUNG(SLOTS_LOCK))

/* Each place where each ioctl can sleep, and user space knows how to keep it asleep. */
static const struct {
	const struct operation *operation;
	u32 rungs;
} sleeping_points[] = {
	{ &capabilities, RUNG(COMMAND) | RUNG(DATA) },
	{ &init_vm, RUNG(VM_LOCK) | RUNG(SLOTS_LOCK) | RUNG(COMMAND) | RUNG(DATA) },
	{ &create_vcpu, RUNG(VM_LOCK) },
	{ &init_vcpu, ALL_LOCKS | RUNG(COMMAND) },
	{ &get_cpuid, RUNG(VCPU_MUTEX) | RUNG(COMMAND) | RUNG(DATA) },
	{ &init_mem_region, ALL_LOCKS | RUNG(COMMAND) | RUNG(DATA) | RUNG(SOURCE) },
	{ &finalize_vm, ALL_LOCKS | RUNG(COMMAND) },
};

/*
 * A fatal signal ends the wait for a vCPU and for memory of user space.  The
 * wait for another lock goes on, and so does the ioctl thereafter, if it does
 * not look for signals by itself.
 */
TEST_F_TIMEOUT(tdx, killed_where_it_sleeps, 600)
{
	void *page = map_pages(1, PROT_READ | PROT_WRITE);
	int i, nr = 0, nr_at_once = 0, nr_done = 0;
	struct comparison comparison;
	struct blocker blocker;
	struct outcome outcome;
	struct td td;
	bool too_few;
	enum rung at;

	if (!blocker_init(&blocker, page))
		SKIP(return, NO_BLOCKER);
	blocker_free(&blocker);
	unmap_pages(page, 1);
	td_create(&td, 0);
	too_few = td_max_vcpus(&td) < 2;
	td_free(&td);
	if (too_few)
		SKIP(return, "TDs have at most one vCPU here");

	comparison_start(&comparison, _metadata->name, variant->rust);
	for (i = 0; i < ARRAY_SIZE(sleeping_points); i++) {
		for (at = RUNG_VM_LOCK; at <= RUNG_SOURCE; at++) {
			if (!(sleeping_points[i].rungs & BIT(at)))
				continue;
			outcome = test_killed_at(_metadata, sleeping_points[i].operation, at);
			EXPECT_EQ(at != RUNG_VM_LOCK && at != RUNG_SLOTS_LOCK,
				  outcome.dead) {
				TH_LOG("%s: killed", outcome.where);
			}
			outcome_compare(_metadata, &comparison, &outcome);
			nr++;
			nr_at_once += outcome.dead;
			nr_done += !!outcome.error;
		}
	}
	ksft_print_msg("killed at %d points, %d at once, %d only once the ioctl was done\n",
		       nr, nr_at_once, nr_done);
	comparison_end(_metadata, &comparison);
}

static void holder_and_waiter(int ready)
{
	void *page = map_pages(1, PROT_READ | PROT_WRITE);
	struct kvm_tdx_cmd hold = { .id = KVM_TDX_GET_CPUID, .data = (u64)page };
	struct kvm_tdx_cmd wait = { .id = KVM_TDX_FINALIZE_VM };
	struct call holder, waiter;
	struct blocker blocker;
	struct td td;

	TEST_ASSERT(blocker_init(&blocker, page), "No userfaultfd");
	td_create_to(&td, 1, TD_MEMORY_ADDED);
	tdx_call_start(&holder, td.vcpus[0]->fd, &hold);
	blocker_wait(&blocker);
	tdx_call_start(&waiter, td.vm->fd, &wait);
	wait_for_lock_wait(waiter.tid);

	TEST_ASSERT(write(ready, "", 1) == 1, "Cannot tell that all is set");
	pause();
}

/* The whole VMM dies, one thread within an ioctl and one waiting for the other. */
TEST_F(tdx, vmm_killed)
{
	struct pollfd fd = { .events = POLLIN };
	struct blocker blocker;
	int pipes[2];
	void *page;
	pid_t pid;

	page = map_pages(1, PROT_READ | PROT_WRITE);
	if (!blocker_init(&blocker, page))
		SKIP(return, NO_BLOCKER);
	blocker_free(&blocker);
	unmap_pages(page, 1);

	TEST_ASSERT(!pipe(pipes), "pipe() failed: %s", strerror(errno));
	pid = fork();
	TEST_ASSERT(pid >= 0, __KVM_SYSCALL_ERROR("fork()", pid));
	if (!pid) {
		close(pipes[0]);
		holder_and_waiter(pipes[1]);
	}

	kvm_close(pipes[1]);
	fd.fd = pipes[0];
	TEST_ASSERT(poll(&fd, 1, PATIENCE * 1000) == 1 && fd.revents & POLLIN,
		    "The VMM did not get to where it is to be killed");
	kill(pid, SIGKILL);
	wait_for_death(pid, SIGKILL);
	kvm_close(pipes[0]);
}

/* CPUs that go offline */

#define HOTPLUG_ROUNDS		3

/* Returns 0 or the errno. */
static int cpu_set_online(int cpu, bool online)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/online", cpu);
	return -write_file(path, online ? "1" : "0");
}

/*
 * The CPU that TDs are used on goes offline, at each step of a TD, whose vCPU
 * was loaded there.  KVM makes the module forget that by TDH.VP.FLUSH, and all
 * goes on elsewhere.  The last CPU of a package cannot go as long as there are
 * TDs, for their keys have to be cleared there in the end.
 */
TEST_F_TIMEOUT(tdx, cpu_offline, 300)
{
	enum td_step step, last = TD_NR_STEPS - 1;
	int error, nr_offline = 0, nr_busy = 0;
	struct td td, other;

	cpus_init();
	if (cpus[0] == cpus[1])
		SKIP(return, "only one CPU");
	if (cpu_set_online(cpus[1], true))
		SKIP(return, "CPUs cannot be put offline");

	/*
	 * With lockdep Linux 7.3 warns once, as tdx_cpu_flush_cache() wants not
	 * to be preempted but may be when called by tdx_offline_cpu().
	 */
	kernel_may_warn = true;

	for (step = TD_INITIALIZED; step <= last; step++) {
		go_to_cpu(cpus[1]);
		td_create_to(&td, 1, step);
		go_to_cpu(cpus[0]);

		error = cpu_set_online(cpus[1], false);
		if (error) {
			EXPECT_EQ(EBUSY, error);
			nr_busy++;
			td_finish(&td);
			continue;
		}
		nr_offline++;

		/* One TD is finished without the CPU, another made, and one destroyed with it. */
		td_create_to(&other, 1, TD_FINALIZED);
		td_free(&other);
		if (step % 2) {
			td_finish(&td);
			EXPECT_EQ(0, cpu_set_online(cpus[1], true));
		} else {
			td_advance(&td, last);
			EXPECT_EQ(0, cpu_set_online(cpus[1], true));
			td_free(&td);
		}

		go_to_cpu(cpus[1]);
		td_create_to(&td, 1, TD_FINALIZED);
		td_free(&td);
	}
	ksft_print_msg("the CPU went offline %d times, and was kept online %d times\n",
		       nr_offline, nr_busy);
}

static void *hotplug_thread(void *stop)
{
	while (!READ_ONCE(*(bool *)stop)) {
		cpu_set_online(cpus[1], false);
		cpu_set_online(cpus[1], true);
	}
	return NULL;
}

/* CPUs come and go while TDs are made and destroyed. */
TEST_F_TIMEOUT(tdx, cpu_hotplug, 300)
{
	pthread_t thread;
	bool stop = false;
	struct td td;
	int i;

	cpus_init();
	if (cpus[0] == cpus[1])
		SKIP(return, "only one CPU");
	if (cpu_set_online(cpus[1], true))
		SKIP(return, "CPUs cannot be put offline");

	kernel_may_warn = true;
	thread_start(&thread, hotplug_thread, &stop);
	for (i = 0; i < HOTPLUG_ROUNDS; i++) {
		td_create_to(&td, 1, TD_FINALIZED);
		td_free(&td);
	}
	WRITE_ONCE(stop, true);
	thread_join(thread);
}
