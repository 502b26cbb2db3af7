/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the C and the Rust half of the emulated TDX module know of each other.
 *
 * bindgen reads this header through rust/bindings/bindings_helper.h, so a
 * change here rebuilds the kernel crate: keep it small.
 */
#ifndef _X86_VIRT_TDX_EMULATOR_H
#define _X86_VIRT_TDX_EMULATOR_H

#include <linux/types.h>

struct dentry;
struct pt_regs;
struct seq_file;

/* One SEAMCALL, as the tracepoint shows it. */
struct tdx_emulator_call {
	u64 rax;		/* leaf and version, as the caller passed them */
	u64 rcx;
	u64 rdx;
	u64 r8;
	u64 r9;
	u64 status;		/* RAX on return */
	u64 out_rcx;
	u64 out_rdx;
	u64 out_r8;
	u64 ticks;		/* TSC ticks from the first lock to the last unlock */
	u32 lp;
	u32 name_len;
	u32 locks_len;
	const char *name;	/* not terminated */
	const char *locks;	/* not terminated */
};

/* What SEAMLDR can report of a real platform. */
#define TDX_EMULATOR_NR_CMRS	32

/* What Rust keeps of each page of RAM, zero at first. */
struct tdx_emulator_page {
	u64 words[2];
};

/* A range of RAM. */
struct tdx_emulator_ram {
	u64 base;
	u64 size;
	void *va;				/* of the base, in the direct map */
	struct tdx_emulator_page *pages;
};

/*
 * In ascending order, written once before the first SEAMCALL.  Those that are
 * not used are empty.
 */
extern struct tdx_emulator_ram tdx_emulator_ram[TDX_EMULATOR_NR_CMRS];

/* The registers of a SEAMCALL that is measured. */
struct tdx_emulator_bench_regs {
	u64 rax;
	u64 rcx;
	u64 rdx;
	u64 r8;
	u64 r9;
};

/* Implemented in Rust, called by C. */
int tdx_emulator_start(const char *profile, bool plain);
bool tdx_emulator_seamcall(struct pt_regs *regs);
bool tdx_emulator_leaf_name(u16 number, char *name, size_t size);
void tdx_emulator_show_leaves(struct seq_file *m);
void tdx_emulator_show_statuses(struct seq_file *m, u16 leaf);
void tdx_emulator_show_tds(struct seq_file *m);
void tdx_emulator_show_tdmrs(struct seq_file *m);
void tdx_emulator_show_accounting(struct seq_file *m);
size_t tdx_emulator_orphans(u64 *pages, size_t nr);
void tdx_emulator_check_memory(void);
u32 tdx_emulator_host_errors(void);
bool tdx_emulator_page_owned(u64 pa);
bool tdx_emulator_bench(struct seq_file *m, u64 pa, u64 pages, u64 hkid, bool profile);

/*
 * Implemented in C, called by Rust: the machine the module runs on.
 *
 * None of these sleeps or allocates; all may be called with interrupts off.
 */
bool tdx_emulator_cmr(size_t index, u64 *base, u64 *size);
u32 tdx_emulator_phys_bits(void);
u64 tdx_emulator_keyid_partitioning(void);

u32 tdx_emulator_lp(void);
u32 tdx_emulator_lp_count(void);
u32 tdx_emulator_package(void);
u32 tdx_emulator_package_count(void);

bool tdx_emulator_random64(u64 *value);
u64 tdx_emulator_tsc(void);
u64 tdx_emulator_tsc_hz(void);
void tdx_emulator_cpuid(u32 leaf, u32 subleaf, u32 regs[4]);
bool tdx_emulator_rdmsr(u32 msr, u64 *value);
void tdx_emulator_sha384_blocks(u64 state[8], const u8 *data, size_t blocks);

/* Misbehaviour on purpose. */
u64 tdx_emulator_inject(u16 leaf, u32 *hold_us);
void tdx_emulator_hold(u16 leaf, u32 us);
bool tdx_emulator_inject_no_entropy(void);
bool tdx_emulator_inject_key_table_busy(void);
void tdx_emulator_inject_init(struct dentry *parent);

#ifdef CONFIG_INTEL_TDX_EMULATOR_KUNIT_TEST
/* For the tests: a SEAMCALL, its operands first and then its results. */
struct tdx_emulator_test_call {
	u64 rax;		/* leaf and version */
	u64 rcx;
	u64 rdx;
	u64 r8;
	u64 r9;
	u64 status;
	bool done;
};

unsigned int tdx_emulator_test_begin(void);
void tdx_emulator_test_skip(void);
void tdx_emulator_test_say(const char *text, size_t len);
void tdx_emulator_test_call(struct tdx_emulator_test_call *call);
int tdx_emulator_test_start(unsigned int cpu,
			    struct tdx_emulator_test_call *call);
bool tdx_emulator_test_done(const struct tdx_emulator_test_call *call);
u64 tdx_emulator_test_alloc(unsigned int order);
void tdx_emulator_test_free(u64 pa, unsigned int order);

/* What debugfs does: choose the next call of the leaf, look, put all back. */
void tdx_emulator_test_hold(u16 leaf, u32 hold_us);
bool tdx_emulator_test_holding(u16 leaf);
void tdx_emulator_test_key_table_busy(void);
void tdx_emulator_test_reset(void);
#endif

/* Called where Linux reads IA32_MKTME_KEYID_PARTITIONING. */
int tdx_emulator_supply_keyids(int ret, u64 *partitioning);

/* Within C. */
int tdx_emulator_memory_init(void);
void tdx_emulator_memory_debugfs(struct dentry *parent);

/* Measuring. */
u64 tdx_emulator_bench_seamcall(struct tdx_emulator_bench_regs *regs, bool trapped);
void tdx_emulator_bench_profile(struct seq_file *m, struct tdx_emulator_bench_regs *regs);
u64 tdx_emulator_bench_sha384(size_t blocks);
void tdx_emulator_bench_init(struct dentry *parent);

bool tdx_emulator_traced(void);
void tdx_emulator_trace(const struct tdx_emulator_call *call);

#endif /* _X86_VIRT_TDX_EMULATOR_H */
