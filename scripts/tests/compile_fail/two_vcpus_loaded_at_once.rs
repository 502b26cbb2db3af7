//! error: E0596
//! shows: one vCPU loaded
// SPDX-License-Identifier: GPL-2.0
//
// KVM knows of one loaded vCPU per task, and a second load of the same one corrupts a list.

use kernel::{kvm::Vcpu, prelude::*};

use crate::td::{Initialized, Td};

fn case(mut td: Td<'_, Initialized>, vcpu: &Vcpu) -> Result {
    td.with_loaded_vcpu(vcpu, |td, _| {
        td.with_loaded_vcpu(vcpu, |_, _| Ok(()))?; // FAIL
        Ok(())
    })?;
    td.with_loaded_vcpu(vcpu, |_, _| Ok(()))
}
