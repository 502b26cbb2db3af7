/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the TDX tests have in common: each test runs once through KVM's C code
 * and once through its Rust code if the kernel has both, and after each test
 * nothing of a TD may be left behind.
 */
#ifndef SELFTEST_KVM_TDX_TEST_H
#define SELFTEST_KVM_TDX_TEST_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kselftest_harness.h"
#include "tdx_util.h"

#define TDX_RUST_PARAM		"/sys/module/kvm_intel/parameters/tdx_rust"
#define TDX_SERVED_PARAM	"/sys/module/kvm_intel/parameters/tdx_served"
#define TDX_EMULATOR		"/sys/kernel/debug/tdx_emulator"
#define TDX_EMULATOR_TDS	TDX_EMULATOR "/tds"
#define TDX_EMULATOR_PAGES	TDX_EMULATOR "/accounting"
#define TDX_EMULATOR_LEAVES	TDX_EMULATOR "/leaves"
#define TDX_MRTD_DIGITS		96

#define CGROUP_ROOT		"/sys/fs/cgroup"

/* How often to do what is done often, see -n. */
static int nr_rounds = 20;

/* Of the faults of SEAMCALLs, one in so many is tried, see -s. */
static int __maybe_unused fault_stride = 13;
/* Of these, those of one part of so many, see -p. */
static int __maybe_unused fault_part;
static int __maybe_unused fault_parts = 1;

/* The cgroup that each test runs in, one after the other. */
static char cgroup_path[64];

/* Does the kernel have the Rust implementation beside the C one? */
static bool tdx_has_rust(void)
{
	return !access(TDX_RUST_PARAM, F_OK);
}

static void tdx_use_rust(bool rust)
{
	int ret;

	if (!tdx_has_rust() && !rust)
		return;

	ret = write_file(TDX_RUST_PARAM, rust ? "Y" : "N");
	TEST_ASSERT(!ret, "Writing %s failed: %s", TDX_RUST_PARAM, strerror(-ret));
}

/* How many TDX ioctls each implementation has served since the kernel booted. */
struct tdx_served {
	unsigned long rust;
	unsigned long c;
};

static struct tdx_served tdx_read_served(void)
{
	char *text = read_file(TDX_SERVED_PARAM);
	struct tdx_served served = {};

	TEST_ASSERT(text && sscanf(text, "rust=%lu c=%lu", &served.rust, &served.c) == 2,
		    "Cannot make sense of %s: %s", TDX_SERVED_PARAM, text ?: "missing");
	free(text);
	return served;
}

/*
 * The measurement of the only TD, as the emulated TDX module tells it.  False
 * on real hardware, where only the TD itself can ask for it.
 */
static __maybe_unused bool tdx_read_mrtd(char mrtd[TDX_MRTD_DIGITS + 1])
{
	char *text = read_file(TDX_EMULATOR_TDS);
	char *found;

	if (!text)
		return false;

	found = strstr(text, "mrtd=");
	TEST_ASSERT(found && !strstr(found + 1, "mrtd="), "Not exactly one TD:\n%s", text);
	TEST_ASSERT(sscanf(found, "mrtd=%96[0-9a-f]", mrtd) == 1 &&
		    strlen(mrtd) == TDX_MRTD_DIGITS, "No measurement:\n%s", text);
	free(text);
	return true;
}

/* Number of TDs charged to the test's cgroup, -1 if nobody counts them. */
static long tdx_read_charge(void)
{
	char path[128], *text, *found;
	long charge = -1;

	snprintf(path, sizeof(path), "%s/misc.current", cgroup_path);
	text = read_file(path);
	if (!text)
		return -1;

	found = strstr(text, "tdx ");
	if (found)
		charge = strtol(found + strlen("tdx "), NULL, 10);
	free(text);
	return charge;
}

static bool cgroup_enter(void)
{
	char path[128];

	if (write_file(CGROUP_ROOT "/cgroup.subtree_control", "+misc"))
		return false;
	if (mkdir(cgroup_path, 0755) && errno != EEXIST)
		return false;

	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup_path);
	return !write_file(path, "0") && tdx_read_charge() >= 0;
}

static void cgroup_leave(void)
{
	write_file(CGROUP_ROOT "/cgroup.procs", "0");
	rmdir(cgroup_path);
}

/*
 * The ioctl fails with @_errno, or succeeds if that is 0.  An own macro, so
 * that a failure shows what was called and both errors by name.
 */
#define EXPECT_ERRNO(_errno, _call)						\
do {										\
	int _wanted = (_errno), _got = (_call) ? errno : 0;			\
										\
	EXPECT_EQ(_wanted, _got) {						\
		TH_LOG("%s: wanted %s, got %s", #_call,				\
		       _wanted ? strerror(_wanted) : "success",			\
		       _got ? strerror(_got) : "success");			\
	}									\
} while (0)

/* The kernel's log from here on, or -1. */
static int kernel_log_open(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);

	if (fd >= 0)
		lseek(fd, 0, SEEK_END);
	return fd;
}

/*
 * Show what the kernel has to complain about since then, and close its log.
 * That is more than what warn_count counts: lockdep's reports, and SEAMCALLs
 * that fail after the first one has been warned about.
 */
static int kernel_log_complaints(int fd)
{
	static const char * const signs[] = {
		"WARNING:", "BUG:", "INFO: possible", "SEAMCALL TDH_", "TDH_VP_WR[", "TDH_VP_RD[",
	};
	char record[4096], *text;
	int i, nr = 0;
	ssize_t size;

	if (fd < 0)
		return 0;

	/* One record each time.  EPIPE: some are lost. */
	while ((size = read(fd, record, sizeof(record) - 1)) > 0 || errno == EPIPE) {
		if (size <= 0)
			continue;
		record[size] = '\0';
		text = strchr(record, ';');
		if (!text)
			continue;
		*strchrnul(text, '\n') = '\0';
		for (i = 0; i < ARRAY_SIZE(signs); i++) {
			if (!strstr(text, signs[i]))
				continue;
			if (nr++ < 8)
				ksft_print_msg("kernel: %s\n", text + 1);
			break;
		}
	}
	kvm_close(fd);
	return nr;
}

/*
 * Pages: what TDs and vCPUs are made of, KVM allocates as GFP_KERNEL_ACCOUNT
 * and nothing else.  Trace such allocations of this thread, and all frees.
 */
#define PAGE_TRACE	"/sys/kernel/tracing/instances/kvm_tdx_test"
#define PAGE_EVENTS	PAGE_TRACE "/events/kmem/"
#define MAX_LIVE_PAGES	1024

static bool page_trace_started;

static __maybe_unused void page_trace_start(void)
{
	char filter[64];

	snprintf(filter, sizeof(filter), "order == 0 && common_pid == %d", gettid());
	if (mkdir(PAGE_TRACE, 0755) && errno != EEXIST)
		return;

	page_trace_started = !write_file(PAGE_TRACE "/buffer_size_kb", "2048") &&
			     !write_file(PAGE_EVENTS "mm_page_alloc/filter", filter) &&
			     !write_file(PAGE_EVENTS "mm_page_free/filter", "order == 0") &&
			     !write_file(PAGE_TRACE "/trace", "") &&
			     !write_file(PAGE_EVENTS "mm_page_alloc/enable", "1") &&
			     !write_file(PAGE_EVENTS "mm_page_free/enable", "1");
}

/* The number of pages that were not freed, or -1 if not all can be known. */
static long page_trace_stop(long *nr_allocated)
{
	unsigned long live[MAX_LIVE_PAGES], nr_in_buffer, nr_written, pfn;
	char *text, *line, *rest, *found;
	long nr_live = 0;
	bool lost = true;
	int i;

	*nr_allocated = 0;
	write_file(PAGE_EVENTS "enable", "0");
	text = read_file(PAGE_TRACE "/trace");
	rmdir(PAGE_TRACE);
	if (!text)
		return -1;

	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		if (sscanf(line, "# entries-in-buffer/entries-written: %lu/%lu",
			   &nr_in_buffer, &nr_written) == 2)
			lost = nr_in_buffer != nr_written;

		found = strstr(line, " pfn=0x");
		if (!found)
			continue;
		pfn = strtoul(found + strlen(" pfn="), NULL, 16);

		if (strstr(line, "mm_page_alloc: ")) {
			if (!strstr(line, "gfp_flags=GFP_KERNEL_ACCOUNT") ||
			    strstr(line, "__GFP_ZERO") || strstr(line, "__GFP_COMP"))
				continue;
			TEST_ASSERT(nr_live < MAX_LIVE_PAGES, "More than %ld pages", nr_live);
			live[nr_live++] = pfn;
			(*nr_allocated)++;
		} else if (strstr(line, "mm_page_free: ")) {
			for (i = 0; i < nr_live && live[i] != pfn; i++)
				;
			if (i < nr_live)
				live[i] = live[--nr_live];
		}
	}

	free(text);
	return lost ? -1 : nr_live;
}

/* Every page that was allocated since page_trace_start() is freed. */
static __maybe_unused void page_trace_check(struct __test_metadata *const _metadata)
{
	long nr_allocated, nr_left = -1;

	if (page_trace_started)
		nr_left = page_trace_stop(&nr_allocated);
	if (_metadata->exit_code == KSFT_SKIP)
		return;

	if (nr_left < 0) {
		ksft_print_msg("pages of the kernel not counted: no trace of them\n");
		return;
	}

	ksft_print_msg("%ld pages allocated, %ld not freed\n", nr_allocated, nr_left);
	EXPECT_LT(0, nr_allocated);
	EXPECT_EQ(0, nr_left);
}

/*
 * Of tests that make KVM give TDs up on purpose: the kernel may warn, and what is
 * charged for ever, and what the module keeps, as its file tells it.
 */
static bool __maybe_unused kernel_may_warn;
static long __maybe_unused left_charges;
static char __maybe_unused *left_pages;

FIXTURE(tdx) {
	struct tdx_served served;
	char *pages;
	long nr_warnings;
	int kernel_log;
	bool has_cgroup;
};

FIXTURE_VARIANT(tdx) {
	bool rust;
};

FIXTURE_VARIANT_ADD(tdx, c) {
	.rust = false,
};

FIXTURE_VARIANT_ADD(tdx, rust) {
	.rust = true,
};

FIXTURE_SETUP(tdx)
{
	if (variant->rust && !tdx_has_rust())
		SKIP(return, "KVM has no Rust implementation of TDX");

	tdx_use_rust(variant->rust);
	if (tdx_has_rust())
		self->served = tdx_read_served();

	self->has_cgroup = cgroup_enter();
	if (!self->has_cgroup)
		ksft_print_msg("charges not checked: no misc cgroup that counts TDX\n");

	self->pages = read_file(TDX_EMULATOR_PAGES);
	if (!self->pages)
		ksft_print_msg("pages of the module not checked: no %s\n", TDX_EMULATOR_PAGES);

	self->nr_warnings = read_number("/sys/kernel/warn_count", 0);
	self->kernel_log = kernel_log_open();
}

FIXTURE_TEARDOWN(tdx)
{
	struct tdx_served served;
	int nr_complaints = 0;
	char *pages;

	if (kernel_may_warn)
		close(self->kernel_log);
	else
		nr_complaints = kernel_log_complaints(self->kernel_log);
	if (_metadata->exit_code != KSFT_PASS)
		goto out;

	if (!kernel_may_warn) {
		EXPECT_EQ(0, nr_complaints);
		EXPECT_EQ(self->nr_warnings, read_number("/sys/kernel/warn_count", 0)) {
			TH_LOG("The kernel warned, see its log");
		}
	}

	/* What the module owns, and which key ids it knows, is as before. */
	if (self->pages) {
		pages = read_file(TDX_EMULATOR_PAGES);
		EXPECT_STREQ(left_pages ?: self->pages, pages);
		free(pages);
	}

	if (self->has_cgroup)
		EXPECT_EQ(left_charges, tdx_read_charge());

	/* The implementation that was meant did the work, and did all of it. */
	if (tdx_has_rust()) {
		served = tdx_read_served();
		if (variant->rust) {
			EXPECT_LT(self->served.rust, served.rust);
			EXPECT_EQ(self->served.c, served.c);
		} else {
			EXPECT_LT(self->served.c, served.c);
			EXPECT_EQ(self->served.rust, served.rust);
		}
	}

out:
	free(self->pages);
	cgroup_leave();
}

static pid_t main_pid;
static char *rust_before;

static void tdx_test_restore(void)
{
	/* Children that fail an assertion in the library come here, too. */
	if (getpid() != main_pid)
		return;

	if (rust_before)
		write_file(TDX_RUST_PARAM, rust_before);
	rmdir(cgroup_path);
}

static void tdx_test_help(const char *name)
{
	printf("usage: %s [-i c|rust|both] [-n rounds] [-s stride] [-p part/parts]\n"
	       "       [options of the harness]\n\n"
	       " -i: which implementation of KVM's TDX ioctls to test (default: both,\n"
	       "     or C if %s does not exist)\n"
	       " -n: how many TDs to create and destroy in a row, and how often to repeat\n"
	       "     what cannot be made to happen (default: %d)\n"
	       " -s: try one in so many of the ways in which SEAMCALLs can fail (default: %d)\n"
	       " -p: of these, try one part of so many: 1/4, 2/4, 3/4, 4/4\n\n"
	       "The harness lists its options with -h.\n", name, TDX_RUST_PARAM, nr_rounds,
	       fault_stride);
}

static void tdx_test_part(const char *text)
{
	TEST_ASSERT(sscanf(text, "%d/%d", &fault_part, &fault_parts) == 2 &&
		    fault_part >= 1 && fault_part <= fault_parts, "No part: %s", text);
	fault_part--;
}

/*
 * The harness has no options for its users, so take ours out and turn the
 * choice of implementation into a choice of variants.
 */
int main(int argc, char *argv[])
{
	const char *only = tdx_has_rust() ? "both" : "c";
	char **args = calloc(argc + 3, sizeof(*args));
	int i, nr_args = 0, ret = KSFT_PASS;
	bool help = false;

	TEST_ASSERT(args, "-ENOMEM when allocating arguments");
	args[nr_args++] = argv[0];
	args[nr_args++] = "-V";
	args[nr_args++] = "";

	for (i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "-i") && i + 1 < argc)
			only = argv[++i];
		else if (!strcmp(argv[i], "-n") && i + 1 < argc)
			nr_rounds = atoi_positive("Number of rounds", argv[++i]);
		else if (!strcmp(argv[i], "-s") && i + 1 < argc)
			fault_stride = atoi_positive("Stride", argv[++i]);
		else if (!strcmp(argv[i], "-p") && i + 1 < argc)
			tdx_test_part(argv[++i]);
		else if (!strcmp(argv[i], "--help"))
			help = true;
		else
			args[nr_args++] = argv[i];
	}

	if (!strcmp(only, "c")) {
		args[2] = "rust";
	} else if (!strcmp(only, "rust")) {
		args[2] = "c";
	} else if (!strcmp(only, "both")) {
		args[2] = "none";
	} else {
		help = true;
		ret = KSFT_FAIL;
	}

	if (help) {
		tdx_test_help(argv[0]);
		return ret;
	}

	__TEST_REQUIRE(kvm_has_tdx(), "KVM does not support TDX (kvm_intel.tdx=1?)");

	main_pid = getpid();
	rust_before = read_file(TDX_RUST_PARAM);
	snprintf(cgroup_path, sizeof(cgroup_path), CGROUP_ROOT "/kvm_tdx_test.%d", main_pid);
	atexit(tdx_test_restore);

	return test_harness_run(nr_args, args);
}

#endif /* SELFTEST_KVM_TDX_TEST_H */
