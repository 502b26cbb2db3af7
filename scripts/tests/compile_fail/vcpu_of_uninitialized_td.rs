//! error: E0599
//! shows: transition illegal in the state
// SPDX-License-Identifier: GPL-2.0
//
// A TD that is not initialised has no vCPU to initialise.

use kernel::{kvm::Vcpu, prelude::*};

use crate::td::{Initialized, Td, Uninitialized};

fn case(mut before: Td<'_, Uninitialized>, mut after: Td<'_, Initialized>, vcpu: &Vcpu) -> Result {
    before.with_loaded_vcpu(vcpu, |_, _| Ok(()))?; // FAIL
    after.with_loaded_vcpu(vcpu, |_, _| Ok(()))?; // PASS
    drop(before);
    Ok(())
}
