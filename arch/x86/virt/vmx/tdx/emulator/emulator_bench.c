// SPDX-License-Identifier: GPL-2.0
/*
 * The debugfs files tdx_emulator/bench and bench_profile.  Reading bench takes a
 * TD through its life several times and gives, for each SEAMCALL, what it cost:
 * in one life as whoever issues a SEAMCALL sees it, in the next without the trap.
 * bench_profile does it once, and counts the instructions of each function.
 *
 * What is called, and in which order, is in bench.rs.
 */
#include <linux/debugfs.h>
#include <linux/gfp.h>
#include <linux/irqflags.h>
#include <linux/mm.h>
#include <linux/preempt.h>
#include <linux/seq_file.h>
#include <asm/insn-count.h>
#include <asm/ptrace.h>
#include <asm/tdx.h>
#include <asm/tsc.h>
#include <crypto/sha2.h>

#include "tdx_emulator.h"
#include "../seamcall_internal.h"
#include "../tdx.h"

/* The pages of a TD, and one that the host keeps. */
#define BENCH_ORDER	6
#define BENCH_BUFFER	SZ_512K

/*
 * Issue a SEAMCALL as Linux does, or hand the registers to the module without a
 * trap.  Returns the ticks that it took; on a CPU that counts instructions, so
 * many of them.  Interrupts are off in either case, so nothing comes in between.
 */
u64 tdx_emulator_bench_seamcall(struct tdx_emulator_bench_regs *regs,
				bool trapped)
{
	struct tdx_module_args args = {
		.rcx = regs->rcx,
		.rdx = regs->rdx,
		.r8 = regs->r8,
		.r9 = regs->r9,
	};
	struct pt_regs pt_regs = {
		.ax = regs->rax,
		.cx = regs->rcx,
		.dx = regs->rdx,
		.r8 = regs->r8,
		.r9 = regs->r9,
	};
	unsigned long flags;
	u64 ticks, status = 0;

	local_irq_save(flags);
	if (trapped && regs->rax == TDH_VP_ENTER) {
		/* The only leaf that changes other registers. */
		ticks = rdtsc();
		status = __seamcall_saved_ret(regs->rax, &args);
		ticks = rdtsc() - ticks;
	} else if (trapped) {
		ticks = rdtsc();
		status = __seamcall_ret(regs->rax, &args);
		ticks = rdtsc() - ticks;
	} else {
		ticks = rdtsc();
		tdx_emulator_seamcall(&pt_regs);
		ticks = rdtsc() - ticks;
	}
	local_irq_restore(flags);

	if (trapped)
		*regs = (struct tdx_emulator_bench_regs) {
			status, args.rcx, args.rdx, args.r8, args.r9
		};
	else
		*regs = (struct tdx_emulator_bench_regs) {
			pt_regs.ax, pt_regs.cx, pt_regs.dx, pt_regs.r8, pt_regs.r9
		};
	return ticks;
}

static long bench_count(void *regs)
{
	return tdx_emulator_seamcall(regs);
}

/*
 * Hand the registers to the module, and print how many instructions each of its
 * functions executes.
 */
void tdx_emulator_bench_profile(struct seq_file *m,
				struct tdx_emulator_bench_regs *regs)
{
	static struct insn_count_function functions[64];
	struct insn_count count = {
		.nr_functions = ARRAY_SIZE(functions),
		.functions = functions,
	};
	struct pt_regs pt_regs = {
		.ax = regs->rax,
		.cx = regs->rcx,
		.dx = regs->rdx,
		.r8 = regs->r8,
		.r9 = regs->r9,
	};
	int i;

	insn_count_call(&count, bench_count, &pt_regs);
	*regs = (struct tdx_emulator_bench_regs) {
		pt_regs.ax, pt_regs.cx, pt_regs.dx, pt_regs.r8, pt_regs.r9
	};

	for (i = 0; i < count.nr_functions; i++)
		seq_printf(m, "profile %llu %ps\n", functions[i].instructions,
			   (void *)functions[i].address);
}

u64 tdx_emulator_bench_sha384(size_t blocks)
{
	static const u8 data[2 * SHA384_BLOCK_SIZE];
	u64 state[8] = {};
	unsigned long flags;
	u64 ticks;

	blocks = min(blocks, sizeof(data) / SHA384_BLOCK_SIZE);

	local_irq_save(flags);
	ticks = rdtsc();
	tdx_emulator_sha384_blocks(state, data, blocks);
	ticks = rdtsc() - ticks;
	local_irq_restore(flags);

	return ticks;
}

static int bench_lives(struct seq_file *m, bool profile)
{
	struct page *pages;
	int keyid;
	bool clean;

	pages = alloc_pages(GFP_KERNEL | __GFP_ZERO, BENCH_ORDER);
	if (!pages)
		return -ENOMEM;

	keyid = tdx_guest_keyid_alloc();
	if (keyid < 0) {
		__free_pages(pages, BENCH_ORDER);
		return keyid;
	}

	/* A vCPU is associated with the CPU that initialised it. */
	migrate_disable();
	clean = tdx_emulator_bench(m, page_to_phys(pages), 1 << BENCH_ORDER,
				   keyid, profile);
	migrate_enable();

	/* What the module may still own is lost; the file says so. */
	if (!clean)
		return 0;

	tdx_guest_keyid_free(keyid);
	__free_pages(pages, BENCH_ORDER);
	return 0;
}

static int bench_show(struct seq_file *m, void *unused)
{
	return bench_lives(m, false);
}

static int profile_show(struct seq_file *m, void *unused)
{
	return bench_lives(m, true);
}

static int bench_open(struct inode *inode, struct file *file)
{
	return single_open_size(file, bench_show, NULL, BENCH_BUFFER);
}

static const struct file_operations bench_fops = {
	.owner = THIS_MODULE,
	.open = bench_open,
	.read = seq_read,
	.llseek = seq_lseek,
	.release = single_release,
};

static int profile_open(struct inode *inode, struct file *file)
{
	return single_open_size(file, profile_show, NULL, BENCH_BUFFER);
}

static const struct file_operations profile_fops = {
	.owner = THIS_MODULE,
	.open = profile_open,
	.read = seq_read,
	.llseek = seq_lseek,
	.release = single_release,
};

void __init tdx_emulator_bench_init(struct dentry *parent)
{
	debugfs_create_file("bench", 0400, parent, NULL, &bench_fops);
	debugfs_create_file("bench_profile", 0400, parent, NULL, &profile_fops);
}
