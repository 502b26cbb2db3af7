// SPDX-License-Identifier: GPL-2.0

//! What the documentation says of the leaves is what they declare.

use std::path::Path;
use tdx_emulator_host::{
    leaf_table,
    module::{
        LeafInfo,
        Status, //
    },
};

#[test]
#[cfg_attr(miri, ignore = "reads a file")]
fn the_stored_table_is_the_generated_one() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let stored = std::fs::read_to_string(top.join(leaf_table::STORED)).unwrap_or_default();
    assert!(
        stored == leaf_table::rst(),
        "{} is out of date: run `make docs-leaves`",
        leaf_table::STORED
    );
}

#[test]
fn every_modelled_leaf_is_declared_in_full() {
    for info in LeafInfo::all() {
        if info.modelled {
            let never_fails = info.name == "MNG.KEY.RECLAIMID";
            assert_eq!(info.answers.is_empty(), never_fails, "{}", info.name);
            assert!(info.op_states & 0xf800 == 0, "{}", info.name);
            assert!(info.can_answer(Status::SUCCESS));
            let mut statuses = Vec::new();
            info.for_each_status(|status| statuses.push(status));
            for status in &statuses {
                assert!(status.name().is_some() && info.can_answer(*status));
            }
            for lock in info.locks {
                assert!(statuses.contains(&lock.busy()));
            }
            assert!(!info.can_answer(Status::CPUID_LEAF_1F_FORMAT_UNRECOGNIZED.detail(1)));
        } else {
            assert!(info.answers.is_empty() && info.locks.is_empty());
        }
    }
}
