// SPDX-License-Identifier: GPL-2.0

#include <linux/kvm_host.h>

#ifdef CONFIG_RUST_KVM_ABSTRACTIONS

__rust_helper void rust_helper_kvm_vm_bugged(struct kvm *kvm)
{
	kvm_vm_bugged(kvm);
}

__rust_helper void rust_helper_kvm_mmu_write_lock(struct kvm *kvm)
{
	write_lock(&kvm->mmu_lock);
}

__rust_helper void rust_helper_kvm_mmu_write_unlock(struct kvm *kvm)
{
	write_unlock(&kvm->mmu_lock);
}

#endif /* CONFIG_RUST_KVM_ABSTRACTIONS */
