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

struct ram_range {
	u64 base;
	u64 end;
	struct tdx_emulator_page *pages;	/* NULL: they are not watched */
};

/* RAM in ascending order, written once before the first SEAMCALL. */
static struct ram_range ram[TDX_EMULATOR_NR_CMRS] __ro_after_init;
static unsigned int nr_ram __ro_after_init;

/*
 * The direct map's address of the page that @pa lies in, or NULL if that is not
 * RAM or currently not mapped (DEBUG_PAGEALLOC, memfd_secret).  A TDX module is
 * handed addresses by its host and has to survive all of them.
 *
 * A fault on a kernel address goes straight to the exception table, so there is
 * no need for pagefault_disable().
 */
void *tdx_emulator_ram_page(u64 pa, struct tdx_emulator_page **page)
{
	unsigned int i;
	void *va;
	u8 probe;

	for (i = 0; i < nr_ram; i++) {
		if (pa < ram[i].base || pa >= ram[i].end)
			continue;
		va = __va(pa & PAGE_MASK);
		__get_kernel_nofault(&probe, va, u8, unmapped);
		*page = NULL;
		if (ram[i].pages)
			*page = ram[i].pages + PHYS_PFN(pa - ram[i].base);
		return va;
	}

unmapped:
	return NULL;
}

/*
 * The convertible memory is what Linux will build its TDMRs of, except that it
 * skips the first megabyte, as firmware does.
 */
bool tdx_emulator_cmr(size_t index, u64 *base, u64 *size)
{
	unsigned int i;

	for (i = 0; i < nr_ram; i++) {
		u64 start = max_t(u64, ram[i].base, SZ_1M);

		if (start >= ram[i].end)
			continue;
		if (index--)
			continue;
		*base = start;
		*size = ram[i].end - start;
		return true;
	}

	return false;
}

int __init tdx_emulator_memory_init(bool watched)
{
	unsigned long start_pfn, end_pfn;
	unsigned int i;
	int nid;

	for_each_mem_pfn_range(nid, MAX_NUMNODES, &start_pfn, &end_pfn, NULL) {
		u64 base = PFN_PHYS(start_pfn);
		u64 end = PFN_PHYS(end_pfn);

		if (nr_ram && ram[nr_ram - 1].end == base) {
			ram[nr_ram - 1].end = end;
			continue;
		}
		if (nr_ram == TDX_EMULATOR_NR_CMRS)
			return -E2BIG;
		ram[nr_ram].base = base;
		ram[nr_ram].end = end;
		nr_ram++;
	}

	for (i = 0; watched && i < nr_ram; i++) {
		ram[i].pages = vcalloc(PHYS_PFN(ram[i].end - ram[i].base),
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
	struct tdx_emulator_page *unused;
	u8 bytes[64];
	void *va;

	len = min3(len, sizeof(bytes), PAGE_SIZE - offset_in_page(*ppos));
	va = tdx_emulator_ram_page(*ppos, &unused);
	if (!va || copy_from_kernel_nofault(bytes, va + offset_in_page(*ppos), len))
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
	struct tdx_emulator_page *unused;
	u8 bytes[64];
	void *va;

	len = min3(len, sizeof(bytes), PAGE_SIZE - offset_in_page(*ppos));
	if (copy_from_user(bytes, buf, len))
		return -EFAULT;
	va = tdx_emulator_ram_page(*ppos, &unused);
	if (!va)
		return -EIO;
	if (!tdx_emulator_page_owned(*ppos))
		return -EPERM;
	if (copy_to_kernel_nofault(va + offset_in_page(*ppos), bytes, len))
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
