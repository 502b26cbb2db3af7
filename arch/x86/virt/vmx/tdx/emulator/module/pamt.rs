// SPDX-License-Identifier: GPL-2.0

//! Who owns which page: the physical address metadata table.

/// What a page is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PageType {
    /// Nothing: the host's.
    Nda = 0,
    /// Never used for TDX.
    Rsvd = 1,
    /// A TD's memory.
    Reg = 3,
    /// A TD's root.
    Tdr = 4,
    /// A further control page of a TD or vCPU.
    Tdcx = 5,
    /// A vCPU's root.
    Tdvpr = 6,
    /// A Secure EPT page.
    Ept = 8,
}

impl PageType {
    /// The types of pages that TDs own.
    pub const OWNED: [PageType; 5] = [
        PageType::Reg,
        PageType::Tdr,
        PageType::Tdcx,
        PageType::Tdvpr,
        PageType::Ept,
    ];

    /// The name of the type.
    pub const fn name(self) -> &'static str {
        match self {
            PageType::Nda => "NDA",
            PageType::Rsvd => "RSVD",
            PageType::Reg => "REG",
            PageType::Tdr => "TDR",
            PageType::Tdcx => "TDCX",
            PageType::Tdvpr => "TDVPR",
            PageType::Ept => "EPT",
        }
    }

    pub(super) const fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => PageType::Nda,
            1 => PageType::Rsvd,
            3 => PageType::Reg,
            4 => PageType::Tdr,
            5 => PageType::Tdcx,
            6 => PageType::Tdvpr,
            8 => PageType::Ept,
            _ => return None,
        })
    }
}
