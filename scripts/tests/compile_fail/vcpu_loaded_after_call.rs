//! error: E0521
//! shows: early release
// SPDX-License-Identifier: GPL-2.0
//
// A vCPU is loaded for a call, and put after it, whatever the callee does with the proof.

use kernel::{kvm::Vcpu, prelude::*};

use crate::td::{Initialized, Td};

fn case(mut td: Td<'_, Initialized>, vcpu: &Vcpu) -> Result {
    let mut kept = None;

    td.with_loaded_vcpu(vcpu, |_, loaded| {
        kept = Some(loaded); // FAIL
        kept = Some(()); // PASS
        Ok(())
    })?;
    drop(kept);
    Ok(())
}
