// SPDX-License-Identifier: GPL-2.0

//! Names for the TDX module's completion statuses.

use std::fmt;

/// A completion status: what KVM hands back in `hw_error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u64);

/// The status's upper 32 bits without the flags in 63:60, and its name.
const NAMES: &[(u32, &str)] = &[
    (0x001, "NON_RECOVERABLE_VCPU"),
    (0x002, "NON_RECOVERABLE_TD"),
    (0x003, "INTERRUPTED_RESUMABLE"),
    (0x004, "INTERRUPTED_RESTARTABLE"),
    (0x005, "NON_RECOVERABLE_TD_NON_ACCESSIBLE"),
    (0x006, "INVALID_RESUMPTION"),
    (0x007, "NON_RECOVERABLE_TD_WRONG_APIC_MODE"),
    (0x008, "CROSS_TD_FAULT"),
    (0x009, "CROSS_TD_TRAP"),
    (0x00a, "NON_RECOVERABLE_TD_CORRUPTED_MD"),
    (0x100, "OPERAND_INVALID"),
    (0x101, "OPERAND_ADDR_RANGE_ERROR"),
    (0x200, "OPERAND_BUSY"),
    (0x201, "PREVIOUS_TLB_EPOCH_BUSY"),
    (0x202, "SYS_BUSY"),
    (0x203, "RND_NO_ENTROPY"),
    (0x204, "OPERAND_BUSY_HOST_PRIORITY"),
    (0x205, "HOST_PRIORITY_BUSY_TIMEOUT"),
    (0x300, "PAGE_METADATA_INCORRECT"),
    (0x301, "PAGE_ALREADY_FREE"),
    (0x302, "PAGE_NOT_OWNED_BY_TD"),
    (0x303, "PAGE_NOT_FREE"),
    (0x400, "TD_ASSOCIATED_PAGES_EXIST"),
    (0x500, "SYS_INIT_NOT_PENDING"),
    (0x502, "SYS_LP_INIT_NOT_DONE"),
    (0x503, "SYS_LP_INIT_DONE"),
    (0x505, "SYS_NOT_READY"),
    (0x506, "SYS_SHUTDOWN"),
    (0x507, "SYS_KEY_CONFIG_NOT_PENDING"),
    (0x508, "SYS_STATE_INCORRECT"),
    (0x509, "SYS_INVALID_HANDOFF"),
    (0x50a, "SYS_INCOMPATIBLE_SIGSTRUCT"),
    (0x50b, "SYS_LP_INIT_NOT_PENDING"),
    (0x50c, "SYS_CONFIG_NOT_PENDING"),
    (0x50d, "INCOMPATIBLE_SEAM_CAPABILITIES"),
    (0x604, "TD_FATAL"),
    (0x605, "TD_NON_DEBUG"),
    (0x606, "TDCS_NOT_ALLOCATED"),
    (0x607, "LIFECYCLE_STATE_INCORRECT"),
    (0x608, "OP_STATE_INCORRECT"),
    (0x609, "NO_VCPUS"),
    (0x610, "TDCX_NUM_INCORRECT"),
    (0x621, "X2APIC_ID_NOT_UNIQUE"),
    (0x700, "VCPU_STATE_INCORRECT"),
    (0x701, "VCPU_ASSOCIATED"),
    (0x702, "VCPU_NOT_ASSOCIATED"),
    (0x704, "NO_VALID_VE_INFO"),
    (0x705, "MAX_VCPUS_EXCEEDED"),
    (0x706, "TSC_ROLLBACK"),
    (0x730, "TD_VMCS_FIELD_NOT_INITIALIZED"),
    (0x800, "KEY_GENERATION_FAILED"),
    (0x810, "TD_KEYS_NOT_CONFIGURED"),
    (0x811, "KEY_STATE_INCORRECT"),
    (0x815, "KEY_CONFIGURED"),
    (0x817, "WBCACHE_NOT_COMPLETE"),
    (0x820, "HKID_NOT_FREE"),
    (0x821, "NO_HKID_READY_TO_WBCACHE"),
    (0x823, "WBCACHE_RESUME_ERROR"),
    (0x824, "FLUSHVP_NOT_DONE"),
    (0x825, "NUM_ACTIVATED_HKIDS_NOT_SUPPORTED"),
    (0x900, "INCORRECT_CPUID_VALUE"),
    (0x901, "LIMIT_CPUID_MAXVAL_SET"),
    (0x902, "INCONSISTENT_CPUID_FIELD"),
    (0x903, "CPUID_MAX_SUBLEAVES_UNRECOGNIZED"),
    (0x904, "CPUID_LEAF_1F_FORMAT_UNRECOGNIZED"),
    (0x905, "INVALID_WBINVD_SCOPE"),
    (0x906, "INVALID_PKG_ID"),
    (0x907, "ENABLE_MONITOR_FSM_NOT_SET"),
    (0x908, "CPUID_LEAF_NOT_SUPPORTED"),
    (0x910, "SMRR_NOT_LOCKED"),
    (0x911, "INVALID_SMRR_CONFIGURATION"),
    (0x912, "SMRR_OVERLAPS_CMR"),
    (0x913, "SMRR_LOCK_NOT_SUPPORTED"),
    (0x914, "SMRR_NOT_SUPPORTED"),
    (0x920, "INCONSISTENT_MSR"),
    (0x921, "INCORRECT_MSR_VALUE"),
    (0xa00, "INVALID_TDMR"),
    (0xa01, "NON_ORDERED_TDMR"),
    (0xa02, "TDMR_OUTSIDE_CMRS"),
    (0xa03, "TDMR_ALREADY_INITIALIZED"),
    (0xa10, "INVALID_PAMT"),
    (0xa11, "PAMT_OUTSIDE_CMRS"),
    (0xa12, "PAMT_OVERLAP"),
    (0xa20, "INVALID_RESERVED_IN_TDMR"),
    (0xa21, "NON_ORDERED_RESERVED_IN_TDMR"),
    (0xa22, "CMR_LIST_INVALID"),
    (0xb00, "EPT_WALK_FAILED"),
    (0xb01, "EPT_ENTRY_FREE"),
    (0xb02, "EPT_ENTRY_NOT_FREE"),
    (0xb03, "EPT_ENTRY_NOT_PRESENT"),
    (0xb04, "EPT_ENTRY_NOT_LEAF"),
    (0xb05, "EPT_ENTRY_LEAF"),
    (0xb06, "GPA_RANGE_NOT_BLOCKED"),
    (0xb07, "GPA_RANGE_ALREADY_BLOCKED"),
    (0xb08, "TLB_TRACKING_NOT_DONE"),
    (0xb09, "EPT_INVALID_PROMOTE_CONDITIONS"),
    (0xb0a, "PAGE_ALREADY_ACCEPTED"),
    (0xb0b, "PAGE_SIZE_MISMATCH"),
    (0xb0c, "GPA_RANGE_BLOCKED"),
    (0xb0d, "EPT_ENTRY_STATE_INCORRECT"),
    (0xb0e, "EPT_PAGE_NOT_FREE"),
    (0xb0f, "L2_SEPT_WALK_FAILED"),
    (0xb10, "L2_SEPT_ENTRY_NOT_FREE"),
    (0xb11, "PAGE_ATTR_INVALID"),
    (0xb12, "L2_SEPT_PAGE_NOT_PROVIDED"),
    (0xc00, "METADATA_FIELD_ID_INCORRECT"),
    (0xc01, "METADATA_FIELD_NOT_WRITABLE"),
    (0xc02, "METADATA_FIELD_NOT_READABLE"),
    (0xc03, "METADATA_FIELD_VALUE_NOT_VALID"),
];

/// Operands that the low half of a status can name.
const OPERANDS: &[(u32, &str)] = &[
    (0, "RAX"),
    (1, "RCX"),
    (2, "RDX"),
    (3, "RBX"),
    (8, "R8"),
    (9, "R9"),
    (10, "R10"),
    (64, "ATTRIBUTES"),
    (65, "XFAM"),
    (66, "EXEC_CONTROLS"),
    (67, "EPTP_CONTROLS"),
    (68, "MAX_VCPUS"),
    (69, "CPUID_CONFIG"),
    (70, "TSC_FREQUENCY"),
    (71, "NUM_L2_VMS"),
    (72, "IA32_ARCH_CAPABILITIES_CONFIG"),
    (95, "PAGE"),
    (96, "TDMR_INFO_PA"),
    (128, "TDR"),
    (129, "TDCX"),
    (130, "TDVPR"),
    (144, "TDCS"),
    (145, "TDVPS"),
    (146, "SEPT_TREE"),
    (147, "SEPT_ENTRY"),
    (168, "RTMR"),
    (169, "TD_EPOCH"),
    (172, "OP_STATE"),
    (176, "METADATA_FIELD"),
    (184, "SYS"),
    (185, "TDMR"),
    (186, "KOT"),
    (187, "KET"),
    (188, "WBCACHE"),
];

/// Class that Linux makes up for SEAMCALLs that never reached the module.
const SOFTWARE_CLASS: u32 = 0xff00;

impl Status {
    /// Bits 47:32: class and name within the class.
    fn code(self) -> u32 {
        (self.0 >> 32) as u32 & 0xffff
    }

    fn detail(self) -> u32 {
        self.0 as u32
    }

    /// Whether the low half is the number of an operand.
    fn names_operand(self) -> bool {
        matches!(
            self.code(),
            0x100 | 0x101 | 0x200 | 0x204 | 0x300..=0x303 | 0xb00..=0xb12
        )
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("SUCCESS");
        }
        if self.code() == SOFTWARE_CLASS {
            return match self.0 as u32 {
                0xffff_0000 => f.write_str("the TDX module is not loaded (VMfailInvalid)"),
                13 => f.write_str("SEAMCALL raised #GP: TDX is not enabled by the BIOS"),
                6 => f.write_str("SEAMCALL raised #UD: the CPU is not in VMX operation"),
                _ => write!(
                    f,
                    "SEAMCALL failed before it reached the module ({:#x})",
                    self.0
                ),
            };
        }
        let Ok(found) = NAMES.binary_search_by_key(&self.code(), |(code, _)| *code) else {
            return write!(f, "unknown TDX status {:#018x}", self.0);
        };
        f.write_str(NAMES[found].1)?;
        let detail = self.detail();
        match OPERANDS.binary_search_by_key(&detail, |(id, _)| *id) {
            Ok(operand) if self.names_operand() => write!(f, "|{}", OPERANDS[operand].1),
            _ if detail != 0 => write!(f, "|{detail:#x}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted() {
        assert!(NAMES.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(OPERANDS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn statuses_have_names() {
        for (status, name) in [
            (0, "SUCCESS"),
            (0xc000_0100_0000_0000, "OPERAND_INVALID|RAX"),
            (0xc000_0100_0000_0046, "OPERAND_INVALID|TSC_FREQUENCY"),
            (0x8000_0200_0000_0080, "OPERAND_BUSY|TDR"),
            (0xc000_0609_0000_0000, "NO_VCPUS"),
            (0xc000_0920_0000_003b, "INCONSISTENT_MSR|0x3b"),
            (0x0000_0815_0000_0000, "KEY_CONFIGURED"),
            (
                0x8000_ff00_ffff_0000,
                "the TDX module is not loaded (VMfailInvalid)",
            ),
            (
                0xc000_0fff_0000_0000,
                "unknown TDX status 0xc0000fff00000000",
            ),
        ] {
            assert_eq!(Status(status).to_string(), name);
        }
    }
}
