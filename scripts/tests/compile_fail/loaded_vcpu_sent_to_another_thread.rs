//! error: E0277
//! shows: other thread
// SPDX-License-Identifier: GPL-2.0
//
// A vCPU that is loaded is loaded onto the CPU of the task that loaded it.

use kernel::kvm::{LoadedVcpu, Vm};

fn send<T: Send>(_: T) {}

fn case(vcpu: LoadedVcpu<'_>, vm: &Vm) {
    send(vcpu); // FAIL
    drop(vcpu); // PASS
    send(vm);
}
