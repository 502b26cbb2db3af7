// SPDX-License-Identifier: GPL-2.0
/*
 * Races for the state of a TD.  The TDX module's locks never wait: of two
 * SEAMCALLs that want the same one, the second fails, and KVM can not always
 * recover from that.  So KVM has to keep them apart.
 *
 * A race is between two actions.  The holder runs on a CPU of its own, in a
 * thread; the rival begins when the holder is inside a SEAMCALL.  The emulated
 * TDX module can be told to stay in there with all of its locks taken, and then
 * a lock that KVM fails to take is missed every time.  On real hardware nothing
 * can be held, so each race is run over and over, with the rival beginning at
 * random.
 *
 * What may come of a race is what comes of doing one action after the other, so
 * both orders are tried on TDs of the same making, and the race has to end like
 * one of them: errors, results, what the TD can still do, and all that the
 * module tells about it.
 */
#include <linux/falloc.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "tdx_test.h"

#define TDX_EMULATOR_INJECT	TDX_EMULATOR "/inject"

/* The second piece of private memory, whose first page is part of the TD. */
#define OTHER_SLOT		(TDX_TEST_SLOT + 1)
#define OTHER_GPA		(TDX_TEST_GPA * 2)
#define OTHER_NR_PAGES		2

/* Of the first piece, the pages that a race adds, and the one that is there before. */
#define REGION_NR_PAGES		2
#define EARLY_PAGE		3

#define MAX_CPUID_BYTES		(sizeof(struct kvm_cpuid2) + \
				 TDX_MAX_CPUID_ENTRIES * sizeof(struct kvm_cpuid_entry2))

/* A TD that is raced for, with what the actions need at hand. */
struct arena {
	struct td td;
	/* For races between two TDs. */
	struct td peer;
	struct kvm_tdx_init_vm *init;
	struct kvm_tdx_init_mem_region region, other_region;
	struct kvm_cpuid2 *cpuid;
	/* The VM, and vCPUs: the first, the last, and one that is initialized all the time. */
	int vm_fd, first, last, idle;
	struct kvm_run *idle_run;
	int early_fd, other_fd;
	int created;
	/* The TD is going away, and its mappings with it. */
	bool going;
};

/* What an action came to: 0 or an errno, and what it returned beyond that. */
struct result {
	int error;
	u64 data;
};

enum {
	/* Begins with a VM that is no TD yet. */
	NO_TD		= BIT(0),
	/* Begins with two of them. */
	PEER		= BIT(1),
	/* Begins with one vCPU less, or with one that is not initialized. */
	ADDS_LAST	= BIT(2),
	INITS_LAST	= BIT(3),
	INITS_FIRST	= BIT(4),
	/* Begins with a TD that can run. */
	RUNNABLE	= BIT(5),
	/* The idle vCPU comes from a third CPU, which has to flush it. */
	THIRD_CPU	= BIT(6),
};

struct action {
	const char *name;
	void (*run)(struct arena *arena, struct result *result);
	unsigned int flags;
	/* The SEAMCALLs in which it is held, and for how long. */
	const char *leaves[3];
	unsigned int hold_us;
};

static int error_of(int ret)
{
	return ret < 0 ? errno : 0;
}

static void run_init_vm(struct arena *arena, struct result *result)
{
	result->error = error_of(__tdx_ioctl(arena->vm_fd, KVM_TDX_INIT_VM, 0,
					     (u64)arena->init, NULL));
}

static void run_init_peer(struct arena *arena, struct result *result)
{
	result->error = error_of(__vm_tdx_ioctl(arena->peer.vm, KVM_TDX_INIT_VM, 0, arena->init));
}

static void run_create_vcpu(struct arena *arena, struct result *result)
{
	arena->created = __vm_ioctl(arena->td.vm, KVM_CREATE_VCPU,
				    (void *)(long)(arena->td.nr_vcpus - 1));
	result->error = error_of(arena->created);
}

static void run_init_first(struct arena *arena, struct result *result)
{
	result->error = error_of(__tdx_ioctl(arena->first, KVM_TDX_INIT_VCPU, 0, 0, NULL));
}

static void run_init_last(struct arena *arena, struct result *result)
{
	result->error = error_of(__tdx_ioctl(arena->last, KVM_TDX_INIT_VCPU, 0, 0, NULL));
}

static void run_mem_region(struct arena *arena, struct result *result)
{
	result->error = error_of(__tdx_ioctl(arena->first, KVM_TDX_INIT_MEM_REGION,
					     KVM_TDX_MEASURE_MEMORY_REGION,
					     (u64)&arena->region, NULL));
	result->data = arena->region.nr_pages;
}

/* Other memory, and through another vCPU if there is one. */
static void run_other_region(struct arena *arena, struct result *result)
{
	result->error = error_of(__tdx_ioctl(arena->idle, KVM_TDX_INIT_MEM_REGION, 0,
					     (u64)&arena->other_region, NULL));
	result->data = arena->other_region.nr_pages;
}

static void run_finalize(struct arena *arena, struct result *result)
{
	result->error = error_of(__tdx_ioctl(arena->vm_fd, KVM_TDX_FINALIZE_VM, 0, 0, NULL));
}

static void run_get_cpuid(struct arena *arena, struct result *result)
{
	const u8 *byte = (const u8 *)arena->cpuid;
	int i;

	result->error = error_of(__tdx_ioctl(arena->idle, KVM_TDX_GET_CPUID, 0,
					     (u64)arena->cpuid, NULL));
	for (i = 0; i < MAX_CPUID_BYTES; i++)
		result->data = result->data * 31 + byte[i];
}

/* Of the ioctls that load a vCPU and then do nothing with the TD. */
static void run_load(struct arena *arena, struct result *result)
{
	result->error = error_of(ioctl(arena->idle, KVM_GET_TSC_KHZ, 0));
}

static void run_vcpu(struct arena *arena, struct result *result)
{
	result->error = error_of(ioctl(arena->idle, KVM_RUN, 0));
	if (!result->error && !READ_ONCE(arena->going))
		result->data = arena->idle_run->exit_reason;
}

static void run_delete_slot(struct arena *arena, struct result *result)
{
	result->error = error_of(__vm_set_user_memory_region2(arena->td.vm, OTHER_SLOT, 0,
							      OTHER_GPA, 0, NULL, -1, 0));
}

static void run_set_shared(struct arena *arena, struct result *result)
{
	struct kvm_memory_attributes attributes = {
		.address = OTHER_GPA,
		.size = getpagesize(),
	};

	result->error = error_of(__vm_ioctl(arena->td.vm, KVM_SET_MEMORY_ATTRIBUTES,
					    &attributes));
}

static void run_close_file(struct arena *arena, struct result *result)
{
	result->error = error_of(close(arena->other_fd));
	memslot2region(arena->td.vm, OTHER_SLOT)->region.guest_memfd = -1;
}

static int punch(int fd, int page)
{
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			 page * getpagesize(), getpagesize());
}

/* In the file that memory is added to meanwhile. */
static void run_punch_hole(struct arena *arena, struct result *result)
{
	result->error = error_of(punch(arena->early_fd, EARLY_PAGE));
}

/* In another file. */
static void run_punch_other(struct arena *arena, struct result *result)
{
	result->error = error_of(punch(arena->other_fd, 0));
}

#define ACTION(_name, _run, ...)						\
	static const struct action _name = { #_name, _run, __VA_ARGS__ }

ACTION(init_vm, run_init_vm, NO_TD, { "MNG.CREATE", "MNG.ADDCX", "MNG.INIT" }, 20000);
ACTION(init_peer, run_init_peer, NO_TD | PEER);
ACTION(create_vcpu, run_create_vcpu, ADDS_LAST);
ACTION(init_vcpu, run_init_last, INITS_LAST, { "VP.CREATE", "VP.ADDCX", "VP.INIT" }, 20000);
ACTION(init_first_vcpu, run_init_first, INITS_FIRST);
ACTION(init_and_move, run_init_last, INITS_LAST, { "VP.INIT" }, 50000);
ACTION(mem_region, run_mem_region, 0, { "MR.EXTEND" }, 4000);
ACTION(other_region, run_other_region, 0);
ACTION(finalize, run_finalize, 0, { "MR.FINALIZE" }, 50000);
ACTION(get_cpuid, run_get_cpuid, 0, { "MNG.RD" }, 4000);
ACTION(load, run_load, THIRD_CPU, { "VP.FLUSH" }, 50000);
ACTION(run, run_vcpu, 0);
ACTION(run_runnable, run_vcpu, RUNNABLE, { "VP.ENTER" }, 50000);
ACTION(delete_slot, run_delete_slot, 0, { "MEM.RANGE.BLOCK", "MEM.PAGE.REMOVE" }, 20000);
ACTION(set_shared, run_set_shared, 0, { "MEM.RANGE.BLOCK", "MEM.PAGE.REMOVE" }, 20000);
ACTION(close_file, run_close_file, 0, { "MEM.RANGE.BLOCK", "MEM.PAGE.REMOVE" }, 20000);
ACTION(punch_hole, run_punch_hole, 0, { "MEM.RANGE.BLOCK", "MEM.PAGE.REMOVE" }, 20000);
ACTION(punch_other, run_punch_other, 0, { "MEM.RANGE.BLOCK", "MEM.PAGE.REMOVE" }, 20000);

/* The CPUs: of the holder, of the rival and everything else, and a third one if possible. */
static int cpus[3];
static int nr_cpus;

static void find_cpus(void)
{
	cpu_set_t allowed;
	int cpu, ret;

	ret = sched_getaffinity(0, sizeof(allowed), &allowed);
	TEST_ASSERT(!ret, __KVM_SYSCALL_ERROR("sched_getaffinity()", ret));

	nr_cpus = 0;
	for (cpu = 0; cpu < CPU_SETSIZE && nr_cpus < ARRAY_SIZE(cpus); cpu++) {
		if (CPU_ISSET(cpu, &allowed))
			cpus[nr_cpus++] = cpu;
	}
}

/* Make a TD as the actions want to find it. */
static void arena_create(struct arena *arena, int nr_vcpus, unsigned int flags)
{
	struct td *td = &arena->td;
	const size_t size = getpagesize();
	struct kvm_vcpu *idle;
	int i;

	memset(arena, 0, sizeof(*arena));
	arena->created = -1;
	td_create(td, nr_vcpus);
	arena->vm_fd = td->vm->fd;
	arena->init = vm_tdx_alloc_init_params(td->vm);
	arena->cpuid = calloc(1, MAX_CPUID_BYTES);
	TEST_ASSERT(arena->cpuid, "-ENOMEM when allocating CPUID");
	arena->cpuid->nent = TDX_MAX_CPUID_ENTRIES;

	if (flags & PEER)
		td_create(&arena->peer, nr_vcpus);
	if (flags & NO_TD)
		return;

	td_advance(td, TD_INITIALIZED);
	for (i = 0; i < nr_vcpus - !!(flags & ADDS_LAST); i++)
		td->vcpus[i] = vm_tdx_vcpu_create(td->vm, i);
	for (i = 0; td->vcpus[i] && i < TDX_MAX_VCPUS; i++) {
		if (!(i == 0 && (flags & INITS_FIRST)) &&
		    !(i == nr_vcpus - 1 && (flags & INITS_LAST)))
			vcpu_tdx_init(td->vcpus[i]);
	}
	idle = td->vcpus[flags & (ADDS_LAST | INITS_LAST) ? 0 : nr_vcpus - 1];
	arena->first = td->vcpus[0]->fd;
	arena->last = flags & ADDS_LAST ? -1 : td->vcpus[nr_vcpus - 1]->fd;
	arena->idle = idle->fd;
	arena->idle_run = idle->run;

	td->step = TD_VCPUS_INITIALIZED;
	td_advance(td, TD_SLOT_ADDED);
	vm_tdx_add_slot(td->vm, OTHER_SLOT, OTHER_GPA, OTHER_NR_PAGES);
	arena->early_fd = memslot2region(td->vm, TDX_TEST_SLOT)->region.guest_memfd;
	arena->other_fd = memslot2region(td->vm, OTHER_SLOT)->region.guest_memfd;
	arena->region = (struct kvm_tdx_init_mem_region) {
		.source_addr = (u64)td->source,
		.gpa = TDX_TEST_GPA,
		.nr_pages = REGION_NR_PAGES,
	};
	arena->other_region = (struct kvm_tdx_init_mem_region) {
		.source_addr = (u64)td->source,
		.gpa = OTHER_GPA + size,
		.nr_pages = 1,
	};
	if (!(flags & INITS_FIRST)) {
		vcpu_tdx_init_mem_region(td->vcpus[0], KVM_TDX_MEASURE_MEMORY_REGION,
					 td->source + EARLY_PAGE * size,
					 TDX_TEST_GPA + EARLY_PAGE * size, 1);
		vcpu_tdx_init_mem_region(td->vcpus[0], 0, td->source, OTHER_GPA, 1);
	}
	if (flags & RUNNABLE)
		vm_tdx_finalize(td->vm);

	if (flags & THIRD_CPU) {
		struct result result;

		pin_self_to_cpu(cpus[nr_cpus > 2 ? 2 : 0]);
		run_load(arena, &result);
		pin_self_to_cpu(cpus[1]);
	}
}

static void arena_free(struct arena *arena)
{
	if (arena->created >= 0)
		kvm_close(arena->created);
	td_free(&arena->td);
	td_free(&arena->peer);
	free(arena->init);
	free(arena->cpuid);
}

/* What came of a race, or of the two actions one after the other. */
struct outcome {
	struct result results[2];
	/* The error of the next step in the TD's life. */
	int next;
	/* All the TDs, as the emulated module shows them. */
	char tds[512];
};

static void arena_outcome(struct arena *arena, unsigned int flags, struct outcome *outcome)
{
	char *text, *line, *rest;

	if (!(flags & NO_TD)) {
		outcome->next = error_of(__vm_tdx_ioctl(arena->td.vm, KVM_TDX_FINALIZE_VM, 0, 0));
	} else if (arena->created < 0) {
		struct result result;

		run_create_vcpu(arena, &result);
		outcome->next = result.error;
	}

	text = read_file(TDX_EMULATOR_TDS);
	if (!text)
		return;
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		/* Before that come the TD's address and key id. */
		line = strstr(line, "lifecycle=");
		TEST_ASSERT(line, "Cannot make sense of %s", TDX_EMULATOR_TDS);
		strncat(outcome->tds, line, sizeof(outcome->tds) - strlen(outcome->tds) - 2);
		strcat(outcome->tds, ";");
	}
	free(text);
}

/* The thread of the holder. */
struct runner {
	const struct action *action;
	struct arena *arena;
	struct result *result;
	pthread_t thread;
	bool go, done;
	u64 began, ended;
};

static u64 now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void *runner_thread(void *arg)
{
	struct runner *runner = arg;

	while (!READ_ONCE(runner->go))
		cpu_relax();

	runner->began = now_ns();
	runner->action->run(runner->arena, runner->result);
	runner->ended = now_ns();
	WRITE_ONCE(runner->done, true);
	return NULL;
}

/*
 * The thread is there before anything is held.  To make it later could need the
 * other CPU to answer, which it does not while it is held.
 */
static void runner_create(struct runner *runner, const struct action *action,
			  struct arena *arena, struct result *result)
{
	*runner = (struct runner) { .action = action, .arena = arena, .result = result };
	thread_start(&runner->thread, runner_thread, runner);
	pin_task_to_cpu(runner->thread, cpus[0]);
}

static void runner_join(struct runner *runner)
{
	thread_join(runner->thread);
}

/* Holding. */

#define MAX_HOLD_US	140000

static bool can_hold(void)
{
	return !access(TDX_EMULATOR_INJECT "/reset", W_OK);
}

static void hold_nothing(void)
{
	write_file(TDX_EMULATOR_INJECT "/reset", "1");
}

static void __attribute__((constructor)) hold_nothing_before_and_after(void)
{
	hold_nothing();
	atexit(hold_nothing);
}

static void hold_set(const char *leaf, const char *knob, unsigned int value)
{
	char path[128], text[16];
	int ret;

	snprintf(path, sizeof(path), "%s/%s/%s", TDX_EMULATOR_INJECT, leaf, knob);
	snprintf(text, sizeof(text), "%d", value);
	ret = write_file(path, text);
	TEST_ASSERT(!ret, "Writing %s to %s failed: %s", text, path, strerror(-ret));
}

/* Hold each of the SEAMCALLs that @action makes, from now on. */
static void hold_start(const struct action *action)
{
	int i;

	hold_nothing();
	for (i = 0; i < ARRAY_SIZE(action->leaves) && action->leaves[i]; i++) {
		hold_set(action->leaves[i], "hold_us", action->hold_us);
		/* As many as it takes, within limits. */
		hold_set(action->leaves[i], "times", MAX_HOLD_US / action->hold_us);
		hold_set(action->leaves[i], "probability", 100);
	}
}

static bool hold_began(const struct action *action)
{
	char path[128];
	int i;

	for (i = 0; i < ARRAY_SIZE(action->leaves) && action->leaves[i]; i++) {
		snprintf(path, sizeof(path), "%s/%s/injected", TDX_EMULATOR_INJECT,
			 action->leaves[i]);
		if (read_number(path, 0))
			return true;
	}
	return false;
}

/* Wait until the holder is held.  False if it is done without having been. */
static bool hold_wait(struct runner *runner)
{
	while (!hold_began(runner->action)) {
		if (READ_ONCE(runner->done))
			return hold_began(runner->action);
	}
	return true;
}

/*
 * Let @runner begin.  Comes back when it is held or, without holding, within a
 * millisecond.  False if it should have been held and was not.
 */
static bool runner_begin(struct runner *runner, bool hold)
{
	u64 until = now_ns() + random() % 1000000;

	if (hold)
		hold_start(runner->action);
	WRITE_ONCE(runner->go, true);
	if (hold)
		return hold_wait(runner);
	while (now_ns() < until)
		cpu_relax();
	return true;
}

/*
 * SEAMCALLs that found a lock taken, TDX_OPERAND_BUSY, whatever became of it.
 * Only the emulated module tells.
 */
#define BUSY_TRACE	"/sys/kernel/tracing/instances/kvm_tdx_busy"
#define BUSY_EVENT	BUSY_TRACE "/events/tdx_emulator/seamcall/"
#define BUSY_FILTER	"rax >= 0x8000020000000000 && rax < 0x8000020100000000"

static pid_t busy_trace_pid;

static void busy_trace_free(void)
{
	if (getpid() != busy_trace_pid)
		return;

	write_file(BUSY_EVENT "enable", "0");
	rmdir(BUSY_TRACE);
}

/* Once for all tests, as to make and remove it takes longer than most of them. */
static void __attribute__((constructor)) busy_trace_create(void)
{
	if (access(TDX_EMULATOR, F_OK) || (mkdir(BUSY_TRACE, 0755) && errno != EEXIST))
		return;

	busy_trace_pid = getpid();
	atexit(busy_trace_free);
	write_file(BUSY_TRACE "/buffer_size_kb", "64");
	write_file(BUSY_EVENT "filter", BUSY_FILTER);
	write_file(BUSY_EVENT "enable", "1");
}

/* Returns how many there were since the last time, or -1, and shows some. */
static int busy_trace_read(void)
{
	char *text, *line, *rest;
	int nr = 0;

	text = read_file(BUSY_TRACE "/trace");
	if (!text)
		return -1;

	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		line = strstr(line, " seamcall: ");
		if (line && nr++ < 4)
			ksft_print_msg("busy: %s\n", line + strlen(" seamcall: "));
	}
	free(text);
	/* To open it like this empties it. */
	kvm_close(open(BUSY_TRACE "/trace", O_WRONLY | O_TRUNC));
	return nr;
}

enum order {
	FIRST_THEN_SECOND,
	SECOND_THEN_FIRST,
	NR_SERIAL,
	FIRST_HELD = NR_SERIAL,
	SECOND_HELD,
};

static const char * const order_names[] = { "then", "after", "with", "within" };

/* Two actions, and the TD they begin with. */
struct race {
	const struct action *actions[2];
	unsigned int flags;
	int nr_vcpus;
	/* The MMU may find a lock of the module taken, and try again. */
	bool is_mmu;
};

static bool can_be_held(const struct action *action)
{
	return can_hold() && action->leaves[0];
}

/*
 * Do both actions in the given order, the holder on a CPU of its own.  Returns
 * for how long the holder was at it, in ns.
 */
static u64 do_both(struct __test_metadata *const _metadata, const struct race *race,
		   enum order order, u64 delay, struct outcome *outcome)
{
	int held = order == SECOND_HELD || order == SECOND_THEN_FIRST;
	const struct action *holder = race->actions[held], *rival = race->actions[!held];
	bool hold = order >= NR_SERIAL && can_be_held(holder);
	struct result *result = &outcome->results[!held];
	struct runner runner;
	struct arena arena;
	u64 until, began;

	memset(outcome, 0, sizeof(*outcome));
	arena_create(&arena, race->nr_vcpus, race->flags);
	runner_create(&runner, holder, &arena, &outcome->results[held]);
	if (hold)
		hold_start(holder);

	until = now_ns() + delay;
	WRITE_ONCE(runner.go, true);
	if (order >= NR_SERIAL) {
		if (hold) {
			EXPECT_TRUE(hold_wait(&runner)) {
				TH_LOG("%s was not held", holder->name);
			}
		}
		while (now_ns() < until)
			cpu_relax();
		began = now_ns();
		rival->run(&arena, result);
	}
	runner_join(&runner);
	if (order < NR_SERIAL)
		rival->run(&arena, result);
	if (hold) {
		hold_nothing();
		EXPECT_LT(began, runner.ended) {
			TH_LOG("%s came too late for a race with %s", rival->name, holder->name);
		}
	}

	arena_outcome(&arena, race->flags, outcome);
	arena_free(&arena);
	return runner.ended - runner.began;
}

static bool is_same(const struct outcome *a, const struct outcome *b)
{
	return a->results[0].error == b->results[0].error &&
	       a->results[0].data == b->results[0].data &&
	       a->results[1].error == b->results[1].error &&
	       a->results[1].data == b->results[1].data &&
	       a->next == b->next && !strcmp(a->tds, b->tds);
}

static void print_outcome(const struct race *race, enum order order,
			  const struct outcome *outcome)
{
	const struct result *results = outcome->results;

	ksft_print_msg("%s %s %s: %s (0x%lx), %s (0x%lx), next step %s, %s\n",
		       race->actions[0]->name, order_names[order], race->actions[1]->name,
		       results[0].error ? strerror(results[0].error) : "done", results[0].data,
		       results[1].error ? strerror(results[1].error) : "done", results[1].data,
		       outcome->next ? strerror(outcome->next) : "done", outcome->tds);
}

static void do_races(struct __test_metadata *const _metadata, const struct race *race)
{
	struct outcome legal[NR_SERIAL], got;
	enum order order;
	u64 duration;
	int i, j, nr;

	for (order = 0; order < NR_SERIAL; order++)
		duration = do_both(_metadata, race, order, 0, &legal[order]);

	for (order = FIRST_HELD; order <= SECOND_HELD; order++) {
		const struct action *holder = race->actions[order == SECOND_HELD];

		/* Two of these wait while the third is held. */
		if (holder->flags & THIRD_CPU && nr_cpus < 3)
			continue;
		if (can_hold() && !holder->leaves[0])
			continue;

		nr = can_be_held(holder) ? 1 : nr_rounds;
		for (i = 0; i < nr; i++) {
			do_both(_metadata, race, order,
				nr > 1 ? random() % (duration + 1) : 0, &got);
			if (is_same(&got, &legal[0]) || is_same(&got, &legal[1]))
				continue;

			EXPECT_TRUE(false) {
				TH_LOG("%s with %s, %d vCPUs, ends like neither order",
				       race->actions[0]->name, race->actions[1]->name,
				       race->nr_vcpus);
			}
			for (j = 0; j < NR_SERIAL; j++)
				print_outcome(race, j, &legal[j]);
			print_outcome(race, order, &got);
			return;
		}
	}
}

/* Get ready.  The most vCPUs that a TD may have, or 0 if this machine is too small. */
static int prepare(unsigned int flags)
{
	int nr;
	struct kvm_vm *vm;

	find_cpus();
	if (nr_cpus < 2)
		return 0;
	pin_self_to_cpu(cpus[1]);

	vm = vm_create_tdx();
	nr = min(vm_check_cap(vm, KVM_CAP_MAX_VCPUS), TDX_MAX_VCPUS);
	kvm_vm_free(vm);
	return nr < 2 && flags & (ADDS_LAST | INITS_LAST | INITS_FIRST) ? 0 : nr;
}

#define TOO_SMALL	"needs two CPUs, and TDs of two vCPUs"

static void test_races(struct __test_metadata *const _metadata, struct race race,
		       int min_vcpus, int max_vcpus)
{
	int nr_busy;

	busy_trace_read();
	for (race.nr_vcpus = min_vcpus; race.nr_vcpus <= max_vcpus; race.nr_vcpus++)
		do_races(_metadata, &race);

	nr_busy = busy_trace_read();
	if (nr_busy < 0)
		ksft_print_msg("TDX_OPERAND_BUSY not looked for: the module does not tell\n");
	else if (!race.is_mmu)
		EXPECT_EQ(0, nr_busy);
}

static void test_race(struct __test_metadata *const _metadata, const struct action *first,
		      const struct action *second, bool is_mmu)
{
	struct race race = {
		.actions = { first, second },
		.flags = first->flags | second->flags,
		.is_mmu = is_mmu,
	};
	int nr = prepare(race.flags);

	if (!nr)
		SKIP(return, TOO_SMALL);
	test_races(_metadata, race, nr, nr);
}

/* KVM keeps these apart: none ever finds a lock of the module taken. */
#define RACE(first, second)	test_race(_metadata, &(first), &(second), false)

/* These may meet.  The MMU tries again, having sent all vCPUs out of the guest. */
#define MMU_RACE(first, second)	test_race(_metadata, &(first), &(second), true)

/* kvm->lock: vCPUs are created at no bad time. */
TEST_F_TIMEOUT(tdx, init_vm_vs_create_vcpu, 120)
{
	RACE(init_vm, create_vcpu);
}

TEST_F_TIMEOUT(tdx, mem_region_vs_create_vcpu, 120)
{
	RACE(mem_region, create_vcpu);
}

TEST_F_TIMEOUT(tdx, finalize_vs_create_vcpu, 120)
{
	RACE(finalize, create_vcpu);
}

/* Changes of state against each other. */
TEST_F_TIMEOUT(tdx, init_vm_vs_init_vm, 120)
{
	RACE(init_vm, init_vm);
}

TEST_F_TIMEOUT(tdx, init_vm_vs_init_peer, 120)
{
	RACE(init_vm, init_peer);
}

TEST_F_TIMEOUT(tdx, init_vcpu_vs_init_first_vcpu, 120)
{
	RACE(init_vcpu, init_first_vcpu);
}

TEST_F_TIMEOUT(tdx, init_vcpu_vs_mem_region, 120)
{
	RACE(init_vcpu, mem_region);
}

TEST_F_TIMEOUT(tdx, init_vcpu_vs_finalize, 120)
{
	RACE(init_vcpu, finalize);
}

TEST_F_TIMEOUT(tdx, mem_region_vs_other_region, 120)
{
	RACE(mem_region, other_region);
}

TEST_F_TIMEOUT(tdx, mem_region_vs_finalize, 120)
{
	RACE(mem_region, finalize);
}

TEST_F_TIMEOUT(tdx, finalize_vs_finalize, 120)
{
	RACE(finalize, finalize);
}

/* vcpu->mutex: TDH.MNG.RD for an ioctl of another vCPU, which has no other lock. */
TEST_F_TIMEOUT(tdx, get_cpuid_vs_init_vcpu, 120)
{
	RACE(get_cpuid, init_vcpu);
}

TEST_F_TIMEOUT(tdx, get_cpuid_vs_mem_region, 120)
{
	RACE(get_cpuid, mem_region);
}

TEST_F_TIMEOUT(tdx, get_cpuid_vs_finalize, 120)
{
	RACE(get_cpuid, finalize);
}

/* vcpu->mutex: TDH.VP.FLUSH of another vCPU, which moves to another CPU. */
TEST_F_TIMEOUT(tdx, load_vs_init_vcpu, 120)
{
	RACE(load, init_vcpu);
}

TEST_F_TIMEOUT(tdx, load_vs_mem_region, 120)
{
	RACE(load, mem_region);
}

TEST_F_TIMEOUT(tdx, load_vs_finalize, 120)
{
	RACE(load, finalize);
}

/* vcpu->mutex: KVM_RUN. */
TEST_F_TIMEOUT(tdx, mem_region_vs_run, 120)
{
	RACE(mem_region, run);
}

TEST_F_TIMEOUT(tdx, finalize_vs_run, 120)
{
	RACE(finalize, run);
}

TEST_F_TIMEOUT(tdx, run_runnable_vs_punch_other, 120)
{
	MMU_RACE(run_runnable, punch_other);
}

/* slots_lock: slots and attributes of memory, and files that go. */
TEST_F_TIMEOUT(tdx, mem_region_vs_delete_slot, 120)
{
	RACE(mem_region, delete_slot);
}

TEST_F_TIMEOUT(tdx, mem_region_vs_set_shared, 120)
{
	RACE(mem_region, set_shared);
}

TEST_F_TIMEOUT(tdx, mem_region_vs_close_file, 120)
{
	RACE(mem_region, close_file);
}

TEST_F_TIMEOUT(tdx, finalize_vs_delete_slot, 120)
{
	RACE(finalize, delete_slot);
}

/* The lock of the file, and mmu_lock. */
TEST_F_TIMEOUT(tdx, mem_region_vs_punch_hole, 120)
{
	RACE(mem_region, punch_hole);
}

TEST_F_TIMEOUT(tdx, init_vcpu_vs_punch_hole, 120)
{
	RACE(init_vcpu, punch_hole);
}

/*
 * A hole that is punched into one file of a TD holds off nothing but the MMU and
 * those who add memory of the same file.  TDH.MR.EXTEND and TDH.MR.FINALIZE take
 * the TDR exclusive, and with C nothing holds off the MMU meanwhile: it has
 * TDH.MEM.RANGE.BLOCK or TDH.MEM.PAGE.REMOVE fail twice and gives the VM up, or
 * they fail, and KVM gives it up or returns EBUSY.
 */
#define C_IS_RACY	"known flaw of the C code: no mmu_lock while the TD is measured or finalized"

TEST_F_TIMEOUT(tdx, mem_region_vs_punch_other, 120)
{
	if (!variant->rust)
		SKIP(return, C_IS_RACY);

	RACE(mem_region, punch_other);
}

TEST_F_TIMEOUT(tdx, finalize_vs_punch_other, 120)
{
	if (!variant->rust)
		SKIP(return, C_IS_RACY);

	RACE(finalize, punch_other);
}

/*
 * The thread of KVM_TDX_INIT_VCPU goes to another CPU as soon as TDH.VP.INIT has
 * associated the vCPU with the one that it was on.  C only flushes a vCPU whose
 * initialization is over, has TDH.VP.WR find it associated, and gives the VM up.
 */
TEST_F_TIMEOUT(tdx, init_vcpu_moves, 120)
{
	const struct action *action = &init_and_move;
	int i, nr_vcpus = prepare(action->flags);
	bool hold = can_hold();
	struct outcome outcome;
	struct runner runner;
	struct arena arena;

	if (!variant->rust)
		SKIP(return, "known flaw of the C code: no flush between TDH.VP.INIT and the end");
	if (!nr_vcpus)
		SKIP(return, TOO_SMALL);

	for (i = 0; i < (hold ? 1 : nr_rounds); i++) {
		memset(&outcome, 0, sizeof(outcome));
		arena_create(&arena, nr_vcpus, action->flags);
		runner_create(&runner, action, &arena, &outcome.results[0]);
		EXPECT_TRUE(runner_begin(&runner, hold));

		pin_task_to_cpu(runner.thread, cpus[1]);
		runner_join(&runner);
		if (hold)
			hold_nothing();

		EXPECT_EQ(0, outcome.results[0].error);
		arena_outcome(&arena, action->flags, &outcome);
		EXPECT_EQ(0, outcome.next);
		arena_free(&arena);
	}
}

TEST_F_TIMEOUT(tdx, each_number_of_vcpus, 300)
{
	const struct action *actions[] = { &mem_region, &get_cpuid };
	struct race race;
	int i, nr;

	nr = prepare(0);
	if (!nr)
		SKIP(return, TOO_SMALL);

	for (i = 0; i < ARRAY_SIZE(actions); i++) {
		race = (struct race) { .actions = { actions[i], &finalize } };
		test_races(_metadata, race, 1, nr);
	}
}

/* The VM goes while an ioctl is at work, which finishes and takes the VM with it. */
static void test_destruction(struct __test_metadata *const _metadata,
			     const struct action *action)
{
	int i, nr_vcpus = prepare(action->flags);
	bool hold = can_hold();
	struct runner runner;
	struct result result;
	struct arena arena;

	if (!nr_vcpus)
		SKIP(return, TOO_SMALL);

	for (i = 0; i < (hold ? 1 : nr_rounds); i++) {
		arena_create(&arena, nr_vcpus, action->flags);
		memset(&result, 0, sizeof(result));
		runner_create(&runner, action, &arena, &result);
		EXPECT_TRUE(runner_begin(&runner, hold));

		WRITE_ONCE(arena.going, true);
		td_free(&arena.td);
		runner_join(&runner);
		if (hold)
			hold_nothing();
		arena_free(&arena);

		/* Without holding, it may all be gone before the ioctl begins. */
		EXPECT_TRUE(!result.error || (!hold && result.error == EBADF)) {
			TH_LOG("%s: %s", action->name, strerror(result.error));
		}
	}
}

TEST_F_TIMEOUT(tdx, destroyed_in_init_vm, 120)
{
	test_destruction(_metadata, &init_vm);
}

TEST_F_TIMEOUT(tdx, destroyed_in_init_vcpu, 120)
{
	test_destruction(_metadata, &init_vcpu);
}

TEST_F_TIMEOUT(tdx, destroyed_in_mem_region, 120)
{
	test_destruction(_metadata, &mem_region);
}

TEST_F_TIMEOUT(tdx, destroyed_in_get_cpuid, 120)
{
	test_destruction(_metadata, &get_cpuid);
}

TEST_F_TIMEOUT(tdx, destroyed_in_finalize, 120)
{
	test_destruction(_metadata, &finalize);
}

TEST_F_TIMEOUT(tdx, destroyed_in_run_runnable, 120)
{
	test_destruction(_metadata, &run_runnable);
}
