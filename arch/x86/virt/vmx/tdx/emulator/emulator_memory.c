// SPDX-License-Identifier: GPL-2.0
/*
 * Where the machine's RAM is, for the emulated TDX module, and a debugfs file
 * that shows it as the host sees it.
 */
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/init.h>
#include <linux/memblock.h>
#include <linux/mm.h>
#include <linux/sizes.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <asm/page.h>

#include "tdx_emulator.h"

struct tdx_emulator_ram tdx_emulator_ram[TDX_EMULATOR_NR_CMRS] __ro_after_init;
static unsigned int nr_ram __ro_after_init;

/* The direct map's address of @pa, or NULL if that is not RAM. */
static void *ram_va(u64 pa)
{
	struct tdx_emulator_ram *ram = tdx_emulator_ram;
	unsigned int i;

	for (i = 0; i < nr_ram; i++) {
		if (pa - ram[i].base < ram[i].size)
			return ram[i].va + (pa - ram[i].base);
	}

	return NULL;
}

/*
 * The convertible memory is what Linux will build its TDMRs of, except that it
 * skips the first megabyte, as firmware does.
 */
bool tdx_emulator_cmr(size_t index, u64 *base, u64 *size)
{
	struct tdx_emulator_ram *ram = tdx_emulator_ram;
	unsigned int i;

	for (i = 0; i < nr_ram; i++) {
		u64 start = max_t(u64, ram[i].base, SZ_1M);
		u64 end = ram[i].base + ram[i].size;

		if (start >= end)
			continue;
		if (index--)
			continue;
		*base = start;
		*size = end - start;
		return true;
	}

	return false;
}

int __init tdx_emulator_memory_init(void)
{
	struct tdx_emulator_ram *ram = tdx_emulator_ram;
	unsigned long start_pfn, end_pfn;
	unsigned int i;
	int nid;

	for_each_mem_pfn_range(nid, MAX_NUMNODES, &start_pfn, &end_pfn, NULL) {
		u64 base = PFN_PHYS(start_pfn);
		u64 size = PFN_PHYS(end_pfn) - base;

		if (nr_ram && base - ram[nr_ram - 1].base == ram[nr_ram - 1].size) {
			ram[nr_ram - 1].size += size;
			continue;
		}
		if (nr_ram == TDX_EMULATOR_NR_CMRS)
			return -E2BIG;
		ram[nr_ram].base = base;
		ram[nr_ram].size = size;
		ram[nr_ram].va = __va(base);
		nr_ram++;
	}

	for (i = 0; i < nr_ram; i++) {
		ram[i].pages = vcalloc(PHYS_PFN(ram[i].size),
				       sizeof(*ram[i].pages));
		if (!ram[i].pages)
			return -ENOMEM;
	}

	return nr_ram ? 0 : -ENODEV;
}

/* RAM by physical address, as the host sees it. */
static ssize_t memory_read(struct file *file, char __user *buf, size_t len,
			   loff_t *ppos)
{
	u8 bytes[64];
	void *va;

	len = min3(len, sizeof(bytes), PAGE_SIZE - offset_in_page(*ppos));
	va = ram_va(*ppos);
	if (!va || copy_from_kernel_nofault(bytes, va, len))
		return -EIO;
	if (copy_to_user(buf, bytes, len))
		return -EFAULT;
	*ppos += len;
	return len;
}

/* Writes as a broken host might, but not where it could break itself. */
static ssize_t memory_write(struct file *file, const char __user *buf,
			    size_t len, loff_t *ppos)
{
	u8 bytes[64];
	void *va;

	len = min3(len, sizeof(bytes), PAGE_SIZE - offset_in_page(*ppos));
	if (copy_from_user(bytes, buf, len))
		return -EFAULT;
	va = ram_va(*ppos);
	if (!va)
		return -EIO;
	if (!tdx_emulator_page_owned(*ppos))
		return -EPERM;
	if (copy_to_kernel_nofault(va, bytes, len))
		return -EIO;
	*ppos += len;
	return len;
}

static const struct file_operations memory_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.read = memory_read,
	.write = memory_write,
	.llseek = default_llseek,
};

void __init tdx_emulator_memory_debugfs(struct dentry *parent)
{
	debugfs_create_file("memory", 0600, parent, NULL, &memory_fops);
}
