// SPDX-License-Identifier: GPL-2.0

//! Completion statuses and operand identifiers.

/// The completion status of a leaf, as it is returned in RAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a status says whether the leaf did anything"]
pub struct Status(u64);

/// The operand a status refers to, in its low 32 bits.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Operand {
    Rax = 0,
    Rcx = 1,
    Rdx = 2,
    R8 = 8,
    R9 = 9,
    Attributes = 64,
    Xfam = 65,
    ConfigFlags = 66,
    EptpControls = 67,
    MaxVcpus = 68,
    CpuidConfig = 69,
    TscFrequency = 70,
    NumL2Vms = 71,
    ArchCapabilitiesConfig = 72,
    Tdr = 128,
    SeptTree = 146,
    TdEpoch = 169,
    OpState = 172,
    Kot = 186,
    Ket = 187,
    Wbcache = 188,
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        impl Status {
            $(
                #[doc = concat!("`TDX_", stringify!($name), "`.")]
                $(#[$doc])*
                pub const $name: Self = Self($code << 32);
            )*

            /// The name of the status without its details, if it has one.
            pub fn name(self) -> Option<&'static str> {
                match self.0 >> 32 {
                    $($code => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    SUCCESS = 0x0000_0000;
    NON_RECOVERABLE_VCPU = 0x4000_0001;
    /// With the value that Linux compares with; the 1.5.01 sources have another.
    NON_RECOVERABLE_TD = 0x4000_0002;
    INTERRUPTED_RESUMABLE = 0x8000_0003;

    OPERAND_INVALID = 0xc000_0100;
    OPERAND_ADDR_RANGE_ERROR = 0xc000_0101;
    OPERAND_BUSY = 0x8000_0200;
    PREVIOUS_TLB_EPOCH_BUSY = 0x8000_0201;
    SYS_BUSY = 0x8000_0202;
    RND_NO_ENTROPY = 0x8000_0203;
    HOST_PRIORITY_BUSY_TIMEOUT = 0x9000_0205;
    PAGE_METADATA_INCORRECT = 0xc000_0300;
    TD_ASSOCIATED_PAGES_EXIST = 0xc000_0400;
    SYS_INIT_NOT_PENDING = 0xc000_0500;
    SYS_LP_INIT_NOT_DONE = 0xc000_0502;
    SYS_LP_INIT_DONE = 0xc000_0503;
    SYS_NOT_READY = 0xc000_0505;
    SYS_SHUTDOWN = 0xc000_0506;
    SYS_KEY_CONFIG_NOT_PENDING = 0xc000_0507;
    SYS_STATE_INCORRECT = 0xc000_0508;
    SYS_INVALID_HANDOFF = 0xc000_0509;
    SYS_LP_INIT_NOT_PENDING = 0xc000_050b;
    SYS_CONFIG_NOT_PENDING = 0xc000_050c;
    TD_FATAL = 0xe000_0604;
    TDCS_NOT_ALLOCATED = 0xc000_0606;
    LIFECYCLE_STATE_INCORRECT = 0xc000_0607;
    OP_STATE_INCORRECT = 0xc000_0608;
    NO_VCPUS = 0xc000_0609;
    TDCX_NUM_INCORRECT = 0xc000_0610;
    X2APIC_ID_NOT_UNIQUE = 0xc000_0621;
    VCPU_STATE_INCORRECT = 0xc000_0700;
    VCPU_ASSOCIATED = 0x8000_0701;
    VCPU_NOT_ASSOCIATED = 0x8000_0702;
    MAX_VCPUS_EXCEEDED = 0xc000_0705;
    TSC_ROLLBACK = 0xc000_0706;
    TD_VMCS_FIELD_NOT_INITIALIZED = 0xc000_0730;
    KEY_GENERATION_FAILED = 0x8000_0800;
    TD_KEYS_NOT_CONFIGURED = 0x8000_0810;
    KEY_CONFIGURED = 0x0000_0815;
    WBCACHE_NOT_COMPLETE = 0x8000_0817;
    HKID_NOT_FREE = 0xc000_0820;
    NO_HKID_READY_TO_WBCACHE = 0x0000_0821;
    WBCACHE_RESUME_ERROR = 0xc000_0823;
    FLUSHVP_NOT_DONE = 0x8000_0824;
    NUM_ACTIVATED_HKIDS_NOT_SUPPORTED = 0xc000_0825;
    INCORRECT_CPUID_VALUE = 0xc000_0900;
    LIMIT_CPUID_MAXVAL_SET = 0xc000_0901;
    INCONSISTENT_CPUID_FIELD = 0xc000_0902;
    CPUID_LEAF_1F_FORMAT_UNRECOGNIZED = 0xc000_0904;
    INVALID_PKG_ID = 0xc000_0906;
    CPUID_LEAF_NOT_SUPPORTED = 0xc000_0908;
    SMRR_NOT_LOCKED = 0xc000_0910;
    INVALID_SMRR_CONFIGURATION = 0xc000_0911;
    SMRR_OVERLAPS_CMR = 0xc000_0912;
    SMRR_LOCK_NOT_SUPPORTED = 0xc000_0913;
    INCONSISTENT_MSR = 0xc000_0920;
    INCORRECT_MSR_VALUE = 0xc000_0921;
    INVALID_TDMR = 0xc000_0a00;
    NON_ORDERED_TDMR = 0xc000_0a01;
    TDMR_OUTSIDE_CMRS = 0xc000_0a02;
    TDMR_ALREADY_INITIALIZED = 0x0000_0a03;
    INVALID_PAMT = 0xc000_0a10;
    PAMT_OUTSIDE_CMRS = 0xc000_0a11;
    PAMT_OVERLAP = 0xc000_0a12;
    INVALID_RESERVED_IN_TDMR = 0xc000_0a20;
    NON_ORDERED_RESERVED_IN_TDMR = 0xc000_0a21;
    CMR_LIST_INVALID = 0xc000_0a22;
    EPT_WALK_FAILED = 0xc000_0b00;
    EPT_ENTRY_NOT_PRESENT = 0xc000_0b03;
    GPA_RANGE_NOT_BLOCKED = 0xc000_0b06;
    GPA_RANGE_ALREADY_BLOCKED = 0x0000_0b07;
    TLB_TRACKING_NOT_DONE = 0xc000_0b08;
    PAGE_ALREADY_ACCEPTED = 0x0000_0b0a;
    PAGE_SIZE_MISMATCH = 0xc000_0b0b;
    EPT_ENTRY_STATE_INCORRECT = 0xc000_0b0d;
    EPT_PAGE_NOT_FREE = 0xc000_0b0e;
    METADATA_FIELD_ID_INCORRECT = 0xc000_0c00;
    METADATA_FIELD_NOT_WRITABLE = 0xc000_0c01;
    METADATA_FIELD_NOT_READABLE = 0xc000_0c02;
    METADATA_FIELD_VALUE_NOT_VALID = 0xc000_0c03;
    METADATA_FIRST_FIELD_ID_IN_CONTEXT = 0x0000_0c0b;
}

impl Status {
    /// The status of that value, which need not be one of those above.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The value for RAX.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The same status, about an operand.
    pub const fn on(self, operand: Operand) -> Self {
        self.detail(operand as u32)
    }

    /// The same status with other details in the low 32 bits.
    pub const fn detail(self, detail: u32) -> Self {
        Self(self.0 & !0xffff_ffff | detail as u64)
    }

    /// Whether the status is an error: bit 63.
    pub const fn is_error(self) -> bool {
        self.0 >> 63 != 0
    }

    /// Whether the leaf did what it is for.
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }
}
