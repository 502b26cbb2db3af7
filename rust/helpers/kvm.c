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
 * kvm_lock_all_vcpus() and kvm_unlock_all_vcpus(), but node by node of the xarray:
 * kvm_for_each_vcpu() searches for each next vCPU from the root, which costs many
 * times what the mutexes do.
 *
 * kvm->lock, which the caller holds, keeps the nodes as they are and not only what
 * they hold: vCPUs come under it, and go with the VM. So none of this needs RCU,
 * and it may sleep.
 */
static inline void *kvm_vcpu_entry(struct kvm *kvm, void __rcu **slot)
{
	return rcu_dereference_protected(*slot, lockdep_is_held(&kvm->lock));
}

/* The slots of the vCPUs from @first on, a multiple of XA_CHUNK_SIZE. */
static inline void __rcu **kvm_vcpu_slots(struct kvm *kvm, unsigned long first)
{
	void *entry = kvm_vcpu_entry(kvm, &kvm->vcpu_array.xa_head);
	struct xa_node *node;

	/* A vCPU that is alone needs no node. */
	if (!xa_is_node(entry))
		return &kvm->vcpu_array.xa_head;

	for (node = xa_to_node(entry); node->shift; node = xa_to_node(entry))
		entry = kvm_vcpu_entry(kvm, &node->slots[(first >> node->shift) & XA_CHUNK_MASK]);

	return node->slots;
}

static inline void kvm_unlock_first_vcpus(struct kvm *kvm, unsigned long nr_vcpus)
{
	unsigned long first;

	for (first = 0; first < nr_vcpus; first += XA_CHUNK_SIZE) {
		void __rcu **slot = kvm_vcpu_slots(kvm, first);
		void __rcu **end = slot + min(nr_vcpus - first, XA_CHUNK_SIZE);

		do {
			struct kvm_vcpu *vcpu = kvm_vcpu_entry(kvm, slot);

			mutex_unlock(&vcpu->mutex);
		} while (++slot < end);
	}
}

/* The caller has seen to it that no vCPU is half created. */
__rust_helper int rust_helper_kvm_lock_vcpus(struct kvm *kvm)
{
	unsigned long nr_vcpus = atomic_read(&kvm->online_vcpus);
	unsigned long first;

	lockdep_assert_held(&kvm->lock);

	for (first = 0; first < nr_vcpus; first += XA_CHUNK_SIZE) {
		void __rcu **slot = kvm_vcpu_slots(kvm, first);
		void __rcu **end = slot + min(nr_vcpus - first, XA_CHUNK_SIZE);

		do {
			struct kvm_vcpu *vcpu = kvm_vcpu_entry(kvm, slot);
			int r = mutex_lock_killable_nest_lock(&vcpu->mutex, &kvm->lock);

			if (unlikely(r)) {
				kvm_unlock_first_vcpus(kvm, vcpu->vcpu_idx);
				return r;
			}
		} while (++slot < end);
	}
	return 0;
}

__rust_helper void rust_helper_kvm_unlock_vcpus(struct kvm *kvm)
{
	lockdep_assert_held(&kvm->lock);

	kvm_unlock_first_vcpus(kvm, atomic_read(&kvm->online_vcpus));
}

#endif /* CONFIG_RUST_KVM_ABSTRACTIONS */
