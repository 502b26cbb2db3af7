// SPDX-License-Identifier: GPL-2.0

//! The numbers that TDX commands take, at the edges of what KVM and the module compare them with.
//!
//! An edge is one number of a command that is a limit, or one less or more. Limits that depend on
//! the machine are what KVM answered when it was asked, see [`Offer`].

use std::mem::offset_of;

use kvm_bindings::kvm_cpuid_entry2;
use tdx_uapi::Capabilities;
use tdx_uapi::InitVm;
use tdx_uapi::KVM_TDX_CAPABILITIES;
use tdx_uapi::KVM_TDX_FINALIZE_VM;
use tdx_uapi::KVM_TDX_GET_CPUID;
use tdx_uapi::KVM_TDX_INIT_MEM_REGION;
use tdx_uapi::KVM_TDX_INIT_VCPU;
use tdx_uapi::KVM_TDX_INIT_VM;
use tdx_uapi::MAX_CPUID_ENTRIES;

use crate::kernel::Offer;
use crate::kernel::SLOT_GPA;
use crate::kernel::SLOT_PAGES;
use crate::memory::PAGE;
use crate::memory::SOURCE;
use crate::memory::SOURCE_PAGES;
use crate::program::Call;
use crate::program::Data;
use crate::program::Patch;
use crate::program::Place;

/// The commands that have edges.
pub const COMMANDS: [u32; 6] = [
    KVM_TDX_CAPABILITIES,
    KVM_TDX_INIT_VM,
    KVM_TDX_INIT_VCPU,
    KVM_TDX_INIT_MEM_REGION,
    KVM_TDX_FINALIZE_VM,
    KVM_TDX_GET_CPUID,
];

/// With guest addresses of 48 and of 52 bits, the bit of those that are shared with the host.
pub const GPA_SHARED: u64 = 1 << 47;
const GPA_SHARED_52: u64 = 1 << 51;

/// Where the addresses of user space end.
const TASK_SIZE: u64 = (1 << 47) - PAGE;

/// `struct kvm_tdx_cmd`.
const COMMAND_SIZE: u64 = 24;

/// Fields of `struct kvm_tdx_init_vm` and `struct kvm_tdx_capabilities`.
const INIT_VM_IDENTITIES: usize = offset_of!(InitVm, mrconfigid);
const INIT_VM_RESERVED: usize = offset_of!(InitVm, reserved);
const INIT_VM_NENT: usize = offset_of!(InitVm, cpuid);
const INIT_VM_ENTRIES: usize = INIT_VM_NENT + ENTRIES;
const CAPABILITIES_NENT: usize = offset_of!(Capabilities, cpuid);

/// In `struct kvm_cpuid2`, where the entries begin, and the size of one.
const ENTRIES: usize = 8;
const ENTRY: usize = size_of::<kvm_cpuid_entry2>();

/// A number of a command: where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    Id,
    Flags,
    HwError,
    /// The last operand, where it is no address.
    Operand,
    /// How many bytes of the command can be accessed.
    CommandRoom,
    /// How many bytes of the structure can be accessed.
    Room,
    /// Whether the command can be written back: no number, and 0.
    CommandReadOnly,
    /// Whether the structure can.
    ReadOnly,
    /// A field of the structure.
    Field {
        offset: u16,
        width: u8,
    },
}

/// A number at an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Edge {
    pub number: Number,
    pub value: u64,
    /// Whether the call may be accepted with it: then what comes after has another TD before it.
    pub accepted: bool,
}

impl Edge {
    /// What is checked together: of a table, all is one.
    fn group(&self) -> Number {
        match self.number {
            Number::Field { width: 1, .. } => Number::Field {
                offset: 0,
                width: 1,
            },
            Number::Field { offset, width }
                if (INIT_VM_ENTRIES..CAPABILITIES_NENT).contains(&offset.into()) =>
            {
                Number::Field {
                    offset: INIT_VM_ENTRIES as u16,
                    width,
                }
            }
            number => number,
        }
    }

    /// Changes the number in a call.
    pub fn apply(&self, call: &mut Call) {
        let Call::Tdx {
            id,
            flags,
            hw_error,
            at,
            data,
            ..
        } = call
        else {
            return;
        };
        match (self.number, data) {
            (Number::Id, _) => *id = self.value as u32,
            (Number::Flags, _) => *flags = self.value as u32,
            (Number::HwError, _) => *hw_error = self.value,
            (Number::CommandReadOnly, _) => *at = Place::ReadOnly,
            (Number::CommandRoom, _) => *at = Place::Cut(self.value as u16),
            (Number::Operand, Data::Value(operand)) => *operand = self.value,
            (Number::ReadOnly, Data::Struct { at, .. }) => *at = Place::ReadOnly,
            (Number::Room, Data::Struct { at, .. }) => *at = Place::Cut(self.value as u16),
            (Number::Field { offset, width }, Data::Struct { patches, .. }) => {
                patches.retain(|patch| patch.offset != offset);
                patches.push(Patch {
                    offset,
                    width,
                    value: self.value,
                });
            }
            _ => {}
        }
    }
}

/// The edges of each command, made once.
#[derive(Clone, Debug)]
pub struct Table([Sorted; COMMANDS.len()]);

/// The edges of one command.
#[derive(Clone, Debug, Default)]
pub struct Sorted {
    /// Those that may be accepted.
    pub accepted: Vec<Edge>,
    /// Those that are refused.
    pub refused: Vec<Edge>,
    /// All, by what is checked together.
    pub groups: Vec<Vec<Edge>>,
}

impl Table {
    pub fn new(offer: &Offer) -> Self {
        Self(COMMANDS.map(|command| Sorted::new(edges(command, offer))))
    }

    /// Those of a command.
    pub fn of(&self, command: u32) -> Option<&Sorted> {
        let at = COMMANDS.iter().position(|known| *known == command)?;
        self.0.get(at)
    }
}

impl Sorted {
    fn new(edges: Vec<Edge>) -> Self {
        let mut sorted = Self::default();
        let mut names = Vec::new();
        for edge in edges {
            let name = edge.group();
            let at = names.iter().position(|known| *known == name);
            let at = at.unwrap_or_else(|| {
                names.push(name);
                sorted.groups.push(Vec::new());
                names.len() - 1
            });
            sorted.groups[at].push(edge);
            match edge.accepted {
                true => sorted.accepted.push(edge),
                false => sorted.refused.push(edge),
            }
        }
        sorted
    }
}

/// Collects the edges of one command.
#[derive(Default)]
struct Edges(Vec<Edge>);

impl Edges {
    fn add(&mut self, number: Number, accepted: bool, values: impl IntoIterator<Item = u64>) {
        for value in values {
            let edge = Edge {
                number,
                value,
                accepted,
            };
            if !self
                .0
                .iter()
                .any(|known| (known.number, known.value) == (number, value))
            {
                self.0.push(edge);
            }
        }
    }

    fn field(
        &mut self,
        offset: usize,
        width: u8,
        accepted: bool,
        values: impl IntoIterator<Item = u64>,
    ) {
        let number = Number::Field {
            offset: offset as u16,
            width,
        };
        let mask = u64::MAX >> (64 - u32::from(width) * 8);
        self.add(
            number,
            accepted,
            values.into_iter().map(|value| value & mask),
        );
    }

    /// What is the same of all commands. Of `structure`, the places where KVM stops to read or to
    /// write it.
    fn common(&mut self, takes_flags: u32, structure: &[usize]) {
        let beyond = u64::from(takes_flags) + 1;
        self.add(
            Number::Flags,
            false,
            [beyond, beyond * 2, 1 << 31, u32::MAX.into()],
        );
        self.add(Number::HwError, false, [1, 1 << 63, !0]);
        self.add(Number::CommandRoom, false, [0, COMMAND_SIZE - 1]);
        self.add(Number::CommandRoom, true, [COMMAND_SIZE]);
        self.add(Number::CommandReadOnly, true, [0]);
        if !structure.is_empty() {
            self.add(Number::ReadOnly, true, [0]);
        }
        for end in structure {
            let [less, all, more] = around(*end as u64);
            self.add(Number::Room, false, [less]);
            self.add(Number::Room, true, [all, more]);
        }
    }
}

/// A limit, with one less and one more.
fn around(limit: u64) -> [u64; 3] {
    [limit.wrapping_sub(1), limit, limit.wrapping_add(1)]
}

/// A limit in pages, with one page less and one more.
fn pages_around(limit: u64) -> [u64; 3] {
    [limit.wrapping_sub(PAGE), limit, limit.wrapping_add(PAGE)]
}

/// All edges of a command.
fn edges(command: u32, offer: &Offer) -> Vec<Edge> {
    let mut edges = Edges::default();
    match command {
        KVM_TDX_CAPABILITIES => capabilities(&mut edges, offer),
        KVM_TDX_INIT_VM => init_vm(&mut edges, offer),
        KVM_TDX_INIT_VCPU => {
            edges.common(0, &[]);
            edges.add(Number::Id, false, [0, 1, 4, 6, u32::MAX.into()]);
            edges.add(Number::Operand, true, [0, 1, 1 << 31, 1 << 63, !0]);
        }
        KVM_TDX_INIT_MEM_REGION => init_mem_region(&mut edges),
        KVM_TDX_FINALIZE_VM => edges.common(0, &[]),
        KVM_TDX_GET_CPUID => {
            let found = offer.td_cpuid;
            edges.common(0, &[4, ENTRIES, ENTRIES + ENTRY, ENTRIES + found * ENTRY]);
            let counts = [found as u64, 0, MAX_CPUID_ENTRIES as u64];
            edges.field(0, 4, true, counts.into_iter().flat_map(around));
            edges.field(4, 4, true, [1, !0]);
        }
        _ => {}
    }
    edges.0
}

fn capabilities(edges: &mut Edges, offer: &Offer) {
    let found = offer.configurable.len();
    let nent = CAPABILITIES_NENT;
    let entries = nent + ENTRIES;

    edges.common(0, &[8, nent, nent + 4, entries, entries + found * ENTRY]);
    edges.add(Number::Id, false, [u32::MAX.into()]);
    edges.field(
        nent,
        4,
        true,
        [found as u64, 0, 1 << 31].into_iter().flat_map(around),
    );
    edges.field(nent + 4, 4, true, [1, !0]);
    // It is only written to.
    edges.field(64, 8, true, [1, !0]);
}

fn init_vm(edges: &mut Edges, offer: &Offer) {
    let given = offer.cpuid.len();
    let entries = INIT_VM_ENTRIES;

    edges.common(
        0,
        &[
            INIT_VM_NENT,
            INIT_VM_NENT + 4,
            entries,
            entries + ENTRY,
            entries + given * ENTRY,
        ],
    );
    edges.add(Number::Id, false, [2, 3, 5, 6, u32::MAX.into()]);
    for (offset, usual, supported) in [
        (0, offer.attributes, offer.supported_attributes),
        (8, offer.xfam, offer.supported_xfam),
    ] {
        // Each bit that is set more, or less.
        for bit in (0..64).map(|bit| 1 << bit) {
            edges.field(offset, 8, supported & bit != 0, [usual ^ bit]);
        }
        edges.field(offset, 8, true, [0, supported]);
        edges.field(
            offset,
            8,
            false,
            [!0, !supported, supported.wrapping_add(1)],
        );
    }
    // The first byte, the last, and one between, of what is taken as a whole.
    for identity in 0..3 {
        let start = INIT_VM_IDENTITIES + identity * 48;
        for offset in [start, start + 23, start + 47] {
            edges.field(offset, 1, true, [1 + identity as u64]);
        }
    }
    for offset in [INIT_VM_RESERVED, INIT_VM_RESERVED + 43, INIT_VM_NENT - 1] {
        edges.field(offset, 1, false, [1, 1 << 7]);
    }
    let counts = [0, given as u64, MAX_CPUID_ENTRIES as u64, 1 << 31];
    let counts = counts.into_iter().flat_map(around);
    edges.field(
        INIT_VM_NENT,
        4,
        false,
        counts.filter(|n| *n != given as u64),
    );
    edges.field(INIT_VM_NENT + 4, 4, false, [1, 1 << 31, !0]);
    for (number, (entry, mask)) in offer.cpuid.iter().zip(&offer.configurable).enumerate() {
        // How an entry is found is the same for all of them.
        let is_example = number == 0 || number + 1 == given || entry.function == 7;
        cpuid_entry(edges, entries + number * ENTRY, entry, mask, is_example);
    }
}

/// The numbers of an entry of KVM_TDX_INIT_VM. `mask` is what can be configured of it.
fn cpuid_entry(
    edges: &mut Edges,
    at: usize,
    entry: &kvm_cpuid_entry2,
    mask: &kvm_cpuid_entry2,
    is_example: bool,
) {
    type Entry = kvm_cpuid_entry2;
    /// HLE and RTM in EBX of leaf 7, WAITPKG in ECX.
    const REFUSED: [(usize, u32); 3] = [(1, 4), (1, 11), (2, 5)];

    if is_example {
        let [before, _, after] = around(entry.function.into());
        edges.field(at + offset_of!(Entry, function), 4, false, [before, after]);
        edges.field(
            at + offset_of!(Entry, index),
            4,
            true,
            around(entry.index.into()),
        );
        edges.field(at + offset_of!(Entry, flags), 4, true, [0, 1, 2, 4]);
        edges.field(at + offset_of!(Entry, padding), 4, true, [1]);
    }
    let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx].map(u64::from);
    let masks = [mask.eax, mask.ebx, mask.ecx, mask.edx];
    for (register, (value, mask)) in registers.into_iter().zip(masks).enumerate() {
        let offset = at + offset_of!(Entry, eax) + register * 4;
        edges.field(offset, 4, true, [0]);
        edges.field(offset, 4, mask == u32::MAX, [!0]);
        if (entry.function, entry.index) == (7, 0) {
            for (_, bit) in REFUSED.into_iter().filter(|(of, _)| *of == register) {
                edges.field(offset, 4, false, [value | 1 << bit]);
                edges.field(
                    offset,
                    4,
                    true,
                    [value ^ 1 << (bit - 1), value ^ 1 << (bit + 1)],
                );
            }
        }
        if (entry.function, register) == (0x8000_0008, 0) {
            // The width of a guest physical address.
            let rest = value & !(0xff << 16);
            let widths = [48, 52, 0].into_iter().flat_map(around);
            edges.field(
                offset,
                4,
                true,
                widths.map(|width| rest | (width & 0xff) << 16),
            );
        }
    }
}

fn init_mem_region(edges: &mut Edges) {
    let gpa = SLOT_GPA;
    let slot_end = gpa + SLOT_PAGES * PAGE;
    let source_end = SOURCE + SOURCE_PAGES * PAGE;

    edges.common(1, &[8, 16, 24]);
    edges.add(Number::Flags, true, [0, 1]);
    edges.add(Number::Id, false, [0, 1, 4, 6, u32::MAX.into()]);
    edges.field(0, 8, true, around(0).into_iter().chain(around(SOURCE)));
    edges.field(0, 8, true, [PAGE - 1, PAGE, SOURCE + PAGE / 2]);
    edges.field(
        0,
        8,
        true,
        [source_end, TASK_SIZE, 1 << 47, 1 << 63, 0]
            .into_iter()
            .flat_map(pages_around),
    );
    edges.field(8, 8, true, around(gpa).into_iter().chain([gpa + PAGE / 2]));
    edges.field(
        8,
        8,
        true,
        [
            gpa,
            slot_end,
            GPA_SHARED,
            GPA_SHARED | gpa,
            GPA_SHARED_52,
            GPA_SHARED_52 | gpa,
            1 << 52,
            0,
        ]
        .into_iter()
        .flat_map(pages_around),
    );
    // Up to the end of the slot, of private memory, and of all that 64 bits can address; and as
    // many as are none, or one, in 64 bits.
    let pages_to = |end: u64| end.wrapping_sub(gpa) / PAGE;
    let limits = [
        0,
        SLOT_PAGES,
        pages_to(GPA_SHARED),
        pages_to(GPA_SHARED_52),
        pages_to(0),
        1 << 51,
        1 << 52,
    ];
    edges.field(16, 8, true, limits.into_iter().flat_map(around));
}

#[cfg(test)]
pub mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::generate::tests::offer;
    use crate::program::Kind;
    use crate::program::On;

    /// All edges of a command, in no order.
    pub fn all(command: u32, offer: &Offer) -> Vec<Edge> {
        let table = Table::new(offer);
        table.of(command).unwrap().groups.concat()
    }

    fn values(command: u32, wanted: Number) -> HashSet<u64> {
        all(command, &offer())
            .iter()
            .filter(|edge| edge.number == wanted)
            .map(|edge| edge.value)
            .collect()
    }

    #[test]
    fn a_limit_comes_with_its_neighbours() {
        let field = |offset, width| Number::Field { offset, width };
        let has = |command, number, wanted: &[u64]| {
            let found = values(command, number);
            for value in wanted {
                assert!(
                    found.contains(value),
                    "{command} {number:?}: no {value:#x} in {found:x?}"
                );
            }
        };
        // The offer of the tests has two configurable leaves, and its TDs have three.
        has(
            KVM_TDX_CAPABILITIES,
            field(2048, 4),
            &[0, 1, 2, 3, 0xffff_ffff],
        );
        has(
            KVM_TDX_GET_CPUID,
            field(0, 4),
            &[0, 1, 2, 3, 4, 255, 256, 257],
        );
        has(KVM_TDX_INIT_VM, field(256, 4), &[0, 1, 3, 255, 256, 257]);
        let pages = (GPA_SHARED - SLOT_GPA) / PAGE;
        has(
            KVM_TDX_INIT_MEM_REGION,
            field(16, 8),
            &[0, 1, 3, 4, 5, pages, pages + 1, 1 << 52, !0],
        );
        has(
            KVM_TDX_INIT_MEM_REGION,
            field(8, 8),
            &[GPA_SHARED - PAGE, GPA_SHARED, SLOT_GPA + 1],
        );
        has(
            KVM_TDX_INIT_MEM_REGION,
            field(0, 8),
            &[0, 1, SOURCE - 1, SOURCE + 1],
        );
        has(
            KVM_TDX_INIT_MEM_REGION,
            Number::Flags,
            &[0, 1, 2, 4, 0xffff_ffff],
        );
        has(KVM_TDX_INIT_VCPU, Number::Operand, &[0, !0]);
    }

    #[test]
    fn each_edge_changes_the_call_or_is_what_it_has() {
        for command in COMMANDS {
            let data = match command {
                KVM_TDX_CAPABILITIES => Data::of(Kind::Capabilities),
                KVM_TDX_INIT_VM => Data::of(Kind::InitVm),
                KVM_TDX_INIT_MEM_REGION => Data::of(Kind::MemRegion),
                KVM_TDX_GET_CPUID => Data::of(Kind::Cpuid),
                _ => Data::Value(7),
            };
            let mut seen = HashSet::new();
            let all = all(command, &offer());
            for edge in &all {
                let mut call = Call::tdx(On::Vm, command, data.clone());
                edge.apply(&mut call);
                assert!(seen.insert(call.to_string()), "{edge:?}");
            }
            assert!(all.len() >= 10, "{command}: {}", all.len());
        }
    }
}
