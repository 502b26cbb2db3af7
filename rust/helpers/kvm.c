// SPDX-License-Identifier: GPL-2.0

#include <linux/kvm_host.h>

#ifdef CONFIG_RUST_KVM_ABSTRACTIONS

/* Built in: what calls into kvm.ko, which may be a module, has no place here. */

__rust_helper void rust_helper_kvm_mmu_write_lock(struct kvm *kvm)
{
	write_lock(&kvm->mmu_lock);
}

__rust_helper void rust_helper_kvm_mmu_write_unlock(struct kvm *kvm)
{
	write_unlock(&kvm->mmu_lock);
}

/*
 * kvm_lock_all_vcpus() and kvm_unlock_all_vcpus() by index. kvm_for_each_vcpu()
 * searches for each next vCPU from the root of the xarray, which costs several
 * times what the mutexes do. kvm->lock, which the caller holds, keeps the number
 * of vCPUs as it is; the caller has seen to it that none is half created.
 */
__rust_helper int rust_helper_kvm_lock_vcpus(struct kvm *kvm)
{
	int nr_vcpus = atomic_read(&kvm->online_vcpus);
	int i, r = 0;

	lockdep_assert_held(&kvm->lock);

	for (i = 0; i < nr_vcpus; i++) {
		r = mutex_lock_killable_nest_lock(&kvm_get_vcpu(kvm, i)->mutex,
						  &kvm->lock);
		if (r)
			break;
	}
	while (r && i--)
		mutex_unlock(&kvm_get_vcpu(kvm, i)->mutex);

	return r;
}

__rust_helper void rust_helper_kvm_unlock_vcpus(struct kvm *kvm)
{
	int nr_vcpus = atomic_read(&kvm->online_vcpus);
	int i;

	lockdep_assert_held(&kvm->lock);

	for (i = 0; i < nr_vcpus; i++)
		mutex_unlock(&kvm_get_vcpu(kvm, i)->mutex);
}

#endif /* CONFIG_RUST_KVM_ABSTRACTIONS */
