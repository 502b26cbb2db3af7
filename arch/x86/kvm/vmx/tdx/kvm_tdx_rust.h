/* SPDX-License-Identifier: GPL-2.0 */
#ifndef __KVM_X86_VMX_TDX_RUST_H
#define __KVM_X86_VMX_TDX_RUST_H

/*
 * What C and the Rust implementation of the TDX ioctls call of each other.
 * See Documentation/virt/kvm/x86/intel-tdx-rust.rst.
 */

#ifdef CONFIG_KVM_INTEL_TDX_RUST

/* kvm_tdx.rs: the three entry points, called with the locks of their C twins. */
int tdx_rust_vm_ioctl(struct kvm *kvm, void __user *argp);
int tdx_rust_vcpu_ioctl(struct kvm_vcpu *vcpu, void __user *argp);
int tdx_rust_vcpu_unlocked_ioctl(struct kvm_vcpu *vcpu, void __user *argp);

/* kvm_tdx_glue.h: what is static or inline in C. */
bool tdx_rust_serves(void);
const struct tdx_sys_info *tdx_rust_sysinfo(void);
void tdx_rust_lock_module(void);
void tdx_rust_unlock_module(void);
void tdx_rust_vm_bugged(struct kvm *kvm);
void tdx_rust_seamcall_failed(struct kvm *kvm, const char *name, u64 err,
			      int nr_details, u64 detail1, u64 detail2);
int tdx_rust_package_id(int cpu);
void tdx_rust_warn_package_offline(void);
bool tdx_rust_has_5level_ept(void);
struct misc_cg *tdx_rust_get_current_misc_cg(void);
void tdx_rust_put_misc_cg(struct misc_cg *cg);
int tdx_rust_misc_cg_try_charge(struct misc_cg *cg);
void tdx_rust_misc_cg_uncharge(struct misc_cg *cg);
u64 tdx_rust_virt_to_phys(const void *va);
u64 tdx_rust_page_to_phys(struct page *page);
void tdx_rust_cond_resched(void);
void *tdx_rust_kmalloc(size_t size, gfp_t flags);
struct kvm_cpuid_entry2 *tdx_rust_alloc_cpuid_entries(void);
unsigned long tdx_rust_alloc_pages(unsigned long n, struct page **pages);

/* For bench.c: take and release the guard of either implementation. */
int tdx_bench_guard_rust(struct kvm *kvm);
int tdx_bench_guard_c(struct kvm *kvm);

/* The call sites of the ioctls in main.c: Rust or C, as the parameter says. */
static inline int tdx_serve_vm_ioctl(struct kvm *kvm, void __user *argp)
{
	if (tdx_rust_serves())
		return tdx_rust_vm_ioctl(kvm, argp);

	return tdx_vm_ioctl(kvm, argp);
}

static inline int tdx_serve_vcpu_ioctl(struct kvm_vcpu *vcpu, void __user *argp)
{
	if (tdx_rust_serves())
		return tdx_rust_vcpu_ioctl(vcpu, argp);

	return tdx_vcpu_ioctl(vcpu, argp);
}

static inline int tdx_serve_vcpu_unlocked_ioctl(struct kvm_vcpu *vcpu, void __user *argp)
{
	if (tdx_rust_serves())
		return tdx_rust_vcpu_unlocked_ioctl(vcpu, argp);

	return tdx_vcpu_unlocked_ioctl(vcpu, argp);
}

#else

#define tdx_serve_vm_ioctl tdx_vm_ioctl
#define tdx_serve_vcpu_ioctl tdx_vcpu_ioctl
#define tdx_serve_vcpu_unlocked_ioctl tdx_vcpu_unlocked_ioctl

#endif /* CONFIG_KVM_INTEL_TDX_RUST */

#endif /* __KVM_X86_VMX_TDX_RUST_H */
