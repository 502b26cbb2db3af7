//! error: E0599
//! shows: transition illegal in the state
// SPDX-License-Identifier: GPL-2.0
//
// A TD that is not initialised has no vCPU to initialise.

use kernel::{kvm::Vcpu, prelude::*};

use crate::td::{Initialized, Td, Uninitialized};

fn case<'g>(before: &Td<'g, Uninitialized>, after: &Td<'g, Initialized>, vcpu: &'g Vcpu) -> Result {
    before.load_vcpu(vcpu)?; // FAIL
    after.load_vcpu(vcpu)?; // PASS
    Ok(())
}
