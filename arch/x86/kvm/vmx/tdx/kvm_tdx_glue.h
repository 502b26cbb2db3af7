/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The part of the Rust implementation of the TDX ioctls that has to be C: the
 * switch, and access to what is static in tdx.c or inline in a header. Included
 * once, at the end of tdx.c; holds no logic of an ioctl.
 */

static bool tdx_rust = true;
module_param(tdx_rust, bool, 0644);
MODULE_PARM_DESC(tdx_rust, "Serve the TDX ioctls from Rust (default: on)");

static atomic_long_t tdx_served_by_rust;
static atomic_long_t tdx_served_by_c;

/* Choose who serves the ioctl that has just come in, and count it. */
bool tdx_rust_serves(void)
{
	bool rust = READ_ONCE(tdx_rust);

	atomic_long_inc(rust ? &tdx_served_by_rust : &tdx_served_by_c);
	return rust;
}

static int tdx_served_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "rust=%ld c=%ld\n",
			  atomic_long_read(&tdx_served_by_rust),
			  atomic_long_read(&tdx_served_by_c));
}

static const struct kernel_param_ops tdx_served_ops = {
	.get = tdx_served_get,
};

module_param_cb(tdx_served, &tdx_served_ops, NULL, 0444);
MODULE_PARM_DESC(tdx_served, "TDX ioctls that each implementation has been handed");

const struct tdx_sys_info *tdx_rust_sysinfo(void)
{
	return tdx_sysinfo;
}

void tdx_rust_lock_module(void)
{
	mutex_lock(&tdx_lock);
}

void tdx_rust_unlock_module(void)
{
	mutex_unlock(&tdx_lock);
}

void tdx_rust_vm_bugged(struct kvm *kvm)
{
	kvm_vm_bugged(kvm);
}

/* What TDX_BUG_ON() does once it has found an error, for all callers in Rust. */
void tdx_rust_seamcall_failed(struct kvm *kvm, const char *name, u64 err,
			      int nr_details, u64 detail1, u64 detail2)
{
	if (!WARN_ON_ONCE(!kvm->vm_bugged))
		return;

	kvm_vm_bugged(kvm);
	if (nr_details == 2)
		pr_err_ratelimited("SEAMCALL %s failed: 0x%llx, 0x%llx, 0x%llx\n",
				   name, err, detail1, detail2);
	else if (nr_details == 1)
		pr_err_ratelimited("SEAMCALL %s failed: 0x%llx, 0x%llx\n",
				   name, err, detail1);
	else
		pr_err_ratelimited("SEAMCALL %s failed: 0x%llx\n", name, err);
}

int tdx_rust_package_id(int cpu)
{
	return topology_physical_package_id(cpu);
}

void tdx_rust_warn_package_offline(void)
{
	pr_warn_ratelimited("Creating a TD needs an online CPU in each package: bring one up and try again.\n");
}

bool tdx_rust_has_5level_ept(void)
{
	return cpu_has_vmx_ept_5levels();
}

struct misc_cg *tdx_rust_get_current_misc_cg(void)
{
	return get_current_misc_cg();
}

void tdx_rust_put_misc_cg(struct misc_cg *cg)
{
	put_misc_cg(cg);
}

int tdx_rust_misc_cg_try_charge(struct misc_cg *cg)
{
	return misc_cg_try_charge(MISC_CG_RES_TDX, cg, 1);
}

void tdx_rust_misc_cg_uncharge(struct misc_cg *cg)
{
	misc_cg_uncharge(MISC_CG_RES_TDX, cg, 1);
}

u64 tdx_rust_virt_to_phys(const void *va)
{
	return __pa(va);
}

u64 tdx_rust_page_to_phys(struct page *page)
{
	return page_to_phys(page);
}

void tdx_rust_cond_resched(void)
{
	cond_resched();
}

void *tdx_rust_kmalloc(size_t size, gfp_t flags)
{
	return kmalloc(size, flags);
}

/* Of a constant size, which spares kmalloc() a level of the stack. */
struct kvm_cpuid_entry2 *tdx_rust_alloc_cpuid_entries(void)
{
	return kmalloc_array(KVM_MAX_CPUID_ENTRIES, sizeof(struct kvm_cpuid_entry2),
			     GFP_KERNEL);
}

/*
 * Fill in those of @pages that are NULL, or some of them, from this CPU's node.
 * Return how many are there now.
 */
unsigned long tdx_rust_alloc_pages(unsigned long n, struct page **pages)
{
	return alloc_pages_bulk(GFP_KERNEL_ACCOUNT, n, pages);
}

#ifdef CONFIG_KVM_INTEL_TDX_BENCH
int tdx_bench_guard_c(struct kvm *kvm)
{
	CLASS(tdx_vm_state_guard, guard)(kvm);

	return IS_ERR(guard) ? PTR_ERR(guard) : 0;
}
#endif
