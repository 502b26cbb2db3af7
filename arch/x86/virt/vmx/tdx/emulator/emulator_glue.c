// SPDX-License-Identifier: GPL-2.0
/*
 * The part of the emulated TDX module's kernel face that has to be C: it
 * starts before Rust's only initcall level, catches the trap, and lends the
 * module the machine.
 *
 * How a SEAMCALL gets here.  On a CPU without SEAM the instruction raises #UD.
 * Both IDT and FRED deliver that to exc_invalid_op(), which first looks for
 * the instructions that the kernel itself plants for BUG and WARN (SEAMCALL
 * is none: handle_bug() gives up at its first byte, 0x66), then calls
 * irqentry_enter() and the DIE_TRAP notifiers, and only if none of them claims
 * the trap searches the exception table, which makes TDX_SEAMCALL_UD of it.
 * So when tdx_emulator_die() runs:
 *
 * - Interrupts are off, and RCU, lockdep, context tracking and tracing have
 *   been told so by irqentry_enter().  The code is instrumentable even when
 *   the SEAMCALL was in noinstr text (TDH.VP.ENTER).  There is one gap: with
 *   NOHZ_FULL, RCU does not watch a CPU that is about to enter a guest, and
 *   irqentry_enter() wakes RCU only for the idle task.
 * - It is not an interrupt in the sense of in_hardirq(): the preempt count is
 *   that of the interrupted code, which cannot sleep, as every SEAMCALL is
 *   issued with preemption off.
 * - The stack is that of the interrupted code, #UD has no IST entry.
 * - All registers are in pt_regs, and the return goes to whatever regs->ip
 *   says then.
 *
 * The caller may hold any lock, raw spinlocks included.  The module only ever
 * tries its own locks, so it adds no lock order.  It is also reached from the
 * #MC handler (TDH.PHYMEM.PAGE.RDMD), which can interrupt a SEAMCALL on the
 * same CPU; try-locks make that safe, too.
 */
#define pr_fmt(fmt) "tdx_emulator: " fmt

#include <linux/array_size.h>
#include <linux/cpufeature.h>
#include <linux/cpumask.h>
#include <linux/debugfs.h>
#include <linux/init.h>
#include <linux/kasan.h>
#include <linux/kdebug.h>
#include <linux/mm.h>
#include <linux/panic.h>
#include <linux/percpu.h>
#include <linux/printk.h>
#include <linux/random.h>
#include <linux/seq_file.h>
#include <linux/smp.h>
#include <linux/stop_machine.h>
#include <linux/string.h>
#include <linux/stringify.h>
#include <linux/topology.h>
#include <linux/uaccess.h>
#include <asm/archrandom.h>
#include <asm/asm.h>
#include <asm/cpuid/api.h>
#include <asm/msr.h>
#include <asm/processor-flags.h>
#include <asm/ptrace.h>
#include <asm/tdx.h>
#include <asm/tlbflush.h>
#include <asm/trapnr.h>
#include <asm/tsc.h>
#include <crypto/sha2.h>

#include "tdx_emulator.h"

#define CREATE_TRACE_POINTS
#include "emulator_trace.h"

/* 66 0f 01 cf */
#define SEAMCALL_INSN		0xcf010f66U
#define SEAMCALL_INSN_LEN	4

#define MTRRCAP_SEAMRR		BIT_ULL(15)

/* Bits of a physical address, and how many of them a KeyID may have. */
#define MAX_PHYS_BITS		52
#define KEYID_BITS		6

static u64 keyid_partitioning __ro_after_init;
static bool own_keyids __initdata;

/* The number of an LP is the order of its first SEAMCALL; 0 is "none yet". */
static DEFINE_PER_CPU(u32, lp_number);
static atomic_t nr_lps = ATOMIC_INIT(0);

static bool asked_for __initdata;
static bool bad_option __initdata;
static bool plain __initdata;
static char profile[16] __initdata = "1.5.05";

static bool started __ro_after_init;

u32 tdx_emulator_phys_bits(void)
{
	return boot_cpu_data.x86_phys_bits;
}

u64 tdx_emulator_keyid_partitioning(void)
{
	return keyid_partitioning;
}

u32 tdx_emulator_lp(void)
{
	u32 lp = __this_cpu_read(lp_number);

	if (unlikely(!lp)) {
		lp = atomic_inc_return(&nr_lps);
		__this_cpu_write(lp_number, lp);
	}

	return lp - 1;
}

/*
 * Firmware tells a real module how many LPs there are.  Here it is the number
 * of CPUs that Linux has online, or has had online: SYS.CONFIG waits for all.
 */
u32 tdx_emulator_lp_count(void)
{
	return max_t(u32, num_online_cpus(), atomic_read(&nr_lps));
}

u32 tdx_emulator_package(void)
{
	return topology_logical_package_id(raw_smp_processor_id());
}

u32 tdx_emulator_package_count(void)
{
	return topology_max_packages();
}

bool tdx_emulator_random64(u64 *value)
{
	unsigned long word;

	if (tdx_emulator_inject_no_entropy())
		return false;

	if (arch_get_random_longs(&word, 1)) {
		*value = word;
		return true;
	}

	/* A CPU with RDRAND that is out of entropy is what a host must handle. */
	if (boot_cpu_has(X86_FEATURE_RDRAND))
		return false;

	*value = get_random_u64();
	return true;
}

u64 tdx_emulator_tsc(void)
{
	return rdtsc();
}

u64 tdx_emulator_tsc_hz(void)
{
	return (u64)tsc_khz * 1000;
}

void tdx_emulator_cpuid(u32 leaf, u32 subleaf, u32 regs[4])
{
	cpuid_count(leaf, subleaf, &regs[0], &regs[1], &regs[2], &regs[3]);
}

bool tdx_emulator_rdmsr(u32 msr, u64 *value)
{
	return !rdmsrq_safe(msr, value);
}

/*
 * The library has no function for bare blocks, but a context with an empty
 * buffer takes whole blocks straight through the compression function.  It may
 * use SIMD: that is allowed here, as #UD is not an interrupt and SEAMCALL is
 * not used in kernel FPU sections, and it checks irq_fpu_usable() anyway.
 */
void tdx_emulator_sha384_blocks(u64 state[8], const u8 *data, size_t blocks)
{
	struct sha384_ctx sha;

	sha384_init(&sha);
	memcpy(sha.ctx.state.h, state, sizeof(sha.ctx.state.h));
	sha384_update(&sha, data, blocks * SHA384_BLOCK_SIZE);
	memcpy(state, sha.ctx.state.h, sizeof(sha.ctx.state.h));
	memzero_explicit(&sha, sizeof(sha));
}

bool tdx_emulator_traced(void)
{
	return trace_seamcall_enabled();
}

void tdx_emulator_trace(const struct tdx_emulator_call *call)
{
	trace_seamcall(call);
}

static int tdx_emulator_die(struct notifier_block *nb, unsigned long val,
			    void *data)
{
	struct die_args *args = data;
	struct pt_regs *regs = args->regs;
	u32 insn;

	if (val != DIE_TRAP || args->trapnr != X86_TRAP_UD || user_mode(regs))
		return NOTIFY_DONE;

	if (get_kernel_nofault(insn, (u32 *)regs->ip) || insn != SEAMCALL_INSN)
		return NOTIFY_DONE;

	/* Outside of VMX operation a real SEAMCALL is #UD, too. */
	if (!(cr4_read_shadow() & X86_CR4_VMXE))
		return NOTIFY_DONE;

	regs->flags &= ~(X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_AF |
			 X86_EFLAGS_ZF | X86_EFLAGS_SF | X86_EFLAGS_OF);

	/* VMfailInvalid is what the CPU gives when no module is there. */
	if (!tdx_emulator_seamcall(regs))
		regs->flags |= X86_EFLAGS_CF;

	regs->ip += SEAMCALL_INSN_LEN;
	return NOTIFY_STOP;
}

static struct notifier_block tdx_emulator_die_nb = {
	.notifier_call = tdx_emulator_die,
	/* Ahead of debuggers, which would stop in every SEAMCALL. */
	.priority = INT_MAX,
};

/*
 * Execute SEAMCALL and return the number of the exception it raised, or -1 if
 * it raised none.  Harmless on every CPU: this is before VMXON, where it can
 * reach neither a TDX module nor P-SEAMLDR.
 */
static int __init probe_seamcall(void)
{
	int trap;

	asm volatile("1:	.byte 0x66, 0x0f, 0x01, 0xcf\n"
		     "		movl $-1, %%eax\n"
		     "2:\n"
		     _ASM_EXTABLE_FAULT(1b, 2b)
		     : "=a" (trap)
		     : "a" (0UL), "c" (0UL), "d" (0UL)
		     : "r8", "r9", "r10", "r11", "cc", "memory");

	return trap;
}

static int __init tdx_emulator_param(char *str)
{
	char *option;

	if (!str)
		str = "";

	while ((option = strsep(&str, ","))) {
		if (!strcmp(option, "on"))
			asked_for = true;
		else if (!strcmp(option, "off"))
			asked_for = false;
		else if (!strcmp(option, "plain"))
			plain = true;
		else if (!strstarts(option, "profile=") ||
			 strscpy(profile, option + strlen("profile="),
				 sizeof(profile)) <= 0)
			bad_option = true;
	}

	return 0;
}
early_param("tdx_emulator", tdx_emulator_param);

/*
 * Where the CPU has SEAM, SEAMCALL is #GP or goes to a real TDX module as soon
 * as VMX is on.
 */
static bool __init cpu_has_seam(void)
{
	u64 mtrrcap;

	return boot_cpu_has(X86_FEATURE_MTRR) &&
	       !rdmsrq_safe(MSR_MTRRcap, &mtrrcap) &&
	       (mtrrcap & MTRRCAP_SEAMRR);
}

/*
 * What Linux has found in IA32_MKTME_KEYID_PARTITIONING, long before any
 * initcall.  If that is nothing, put KeyIDs there, as many as on usual hardware
 * if so many bits of an address are unused: half of them are private.
 */
int __init tdx_emulator_supply_keyids(int ret, u64 *partitioning)
{
	int bits = min(MAX_PHYS_BITS - boot_cpu_data.x86_phys_bits, KEYID_BITS);
	u64 half = BIT_ULL(max(bits, 1) - 1);

	if (!asked_for || bad_option || (!ret && *partitioning) ||
	    bits < 2 || cpu_has_seam())
		return ret;

	own_keyids = true;
	keyid_partitioning = half << 32 | (half - 1);
	*partitioning = keyid_partitioning;
	return 0;
}

static int __init tdx_emulator_init(void)
{
	int trap, ret;

	if (bad_option) {
		pr_err("not started: tdx_emulator= takes on, off, plain and profile=NAME\n");
		return -EINVAL;
	}
	if (!asked_for)
		return 0;

	if (cpu_has_seam()) {
		pr_err("not started: this CPU has SEAM (IA32_MTRRCAP bit 15), use its own TDX module\n");
		return -EBUSY;
	}

	trap = probe_seamcall();
	if (trap != X86_TRAP_UD) {
		pr_err("not started: SEAMCALL does not raise #UD here (%d)\n", trap);
		return -EBUSY;
	}

	if (!own_keyids &&
	    (rdmsrq_safe(MSR_IA32_MKTME_KEYID_PARTITIONING, &keyid_partitioning) ||
	     !(keyid_partitioning >> 32))) {
		pr_err("not started: MSR 0x87 (IA32_MKTME_KEYID_PARTITIONING) has no private KeyIDs, and addresses of %u bits leave no room for any\n",
		       boot_cpu_data.x86_phys_bits);
		return -ENODEV;
	}
	if (own_keyids)
		pr_info("MSR 0x87 has no KeyIDs, these are the emulator's own\n");

	ret = tdx_emulator_memory_init();
	if (ret) {
		pr_err("not started: %s\n", ret == -ENOMEM ? "out of memory" :
		       "more than " __stringify(TDX_EMULATOR_NR_CMRS) " ranges of RAM");
		return ret;
	}

	ret = tdx_emulator_start(profile, plain);
	if (ret) {
		pr_err("not started: there is no profile \"%s\"\n", profile);
		return ret;
	}

	ret = register_die_notifier(&tdx_emulator_die_nb);
	if (ret)
		return ret;

	started = true;
	add_taint(TAINT_TEST, LOCKDEP_STILL_OK);
	pr_warn("SEAMCALL is answered in software (profile %s): NOTHING IS CONFIDENTIAL, for testing only\n",
		profile);
	return 0;
}
/* Linux brings the TDX module up at subsys_initcall. */
early_initcall(tdx_emulator_init);

static int leaves_show(struct seq_file *m, void *unused)
{
	tdx_emulator_show_leaves(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(leaves);

static int tds_show(struct seq_file *m, void *unused)
{
	tdx_emulator_show_tds(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(tds);

static int tdmrs_show(struct seq_file *m, void *unused)
{
	tdx_emulator_show_tdmrs(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(tdmrs);

static int accounting_show(struct seq_file *m, void *unused)
{
	tdx_emulator_show_accounting(m);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(accounting);

/*
 * With all other CPUs stopped, none is inside a SEAMCALL.  The pages of which a
 * removal failed are the module's, and yet KVM frees them: the module may read
 * them, whatever KASAN thinks.
 */
static int check_memory(void *unused)
{
	kasan_disable_current();
	tdx_emulator_check_memory();
	kasan_enable_current();
	return 0;
}

static int check_show(struct seq_file *m, void *unused)
{
	int ret = stop_machine(check_memory, NULL, NULL);

	seq_printf(m, "%u\n", tdx_emulator_host_errors());
	return ret;
}
DEFINE_SHOW_ATTRIBUTE(check);

/*
 * Take back what TDs without a key still own, as a host could that had kept its
 * books: KVM frees pages of memory that it could not remove, and forgets them.
 */
static int reclaim_set(void *data, u64 val)
{
	u64 pages[32], type, owner, level, err;
	size_t nr, i;

	do {
		nr = tdx_emulator_orphans(pages, ARRAY_SIZE(pages));
		for (i = 0; i < nr; i++) {
			/* See check_memory(). */
			kasan_disable_current();
			err = tdh_phymem_page_reclaim(pfn_to_page(PHYS_PFN(pages[i])),
						      &type, &owner, &level);
			kasan_enable_current();
			if (err) {
				pr_err("page 0x%llx is not given back: 0x%llx\n",
				       pages[i], err);
				return -EIO;
			}
		}
	} while (nr == ARRAY_SIZE(pages));
	return 0;
}
DEFINE_DEBUGFS_ATTRIBUTE(reclaim_fops, NULL, reclaim_set, "%llu\n");

static int __init tdx_emulator_debugfs_init(void)
{
	struct dentry *dir;

	if (!started)
		return 0;

	dir = debugfs_create_dir("tdx_emulator", NULL);
	debugfs_create_file("leaves", 0444, dir, NULL, &leaves_fops);
	debugfs_create_file("tds", 0444, dir, NULL, &tds_fops);
	debugfs_create_file("tdmrs", 0400, dir, NULL, &tdmrs_fops);
	debugfs_create_file("accounting", 0444, dir, NULL, &accounting_fops);
	debugfs_create_file("check", 0400, dir, NULL, &check_fops);
	debugfs_create_file_unsafe("reclaim", 0200, dir, NULL, &reclaim_fops);
	tdx_emulator_memory_debugfs(dir);
	tdx_emulator_inject_init(dir);
	if (IS_ENABLED(CONFIG_INTEL_TDX_EMULATOR_BENCH))
		tdx_emulator_bench_init(dir);
	return 0;
}
late_initcall(tdx_emulator_debugfs_init);
