// SPDX-License-Identifier: GPL-2.0

//! Makes programs of seeds: such that are right, nearly right, or wild.
//!
//! The same seed gives the same program, on machines that offer the same to TDs.

use kvm_bindings::KVM_BUS_LOCK_DETECTION_EXIT;
use kvm_bindings::KVM_CAP_X86_BUS_LOCK_EXIT;
use kvm_bindings::KVM_CAP_X86_NOTIFY_VMEXIT;
use kvm_bindings::KVM_X86_NOTIFY_VMEXIT_ENABLED;
use rand::seq::IndexedRandom;
use rand::Rng;
use rand::RngCore;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tdx_uapi::KVM_TDX_CAPABILITIES;
use tdx_uapi::KVM_TDX_FINALIZE_VM;
use tdx_uapi::KVM_TDX_GET_CPUID;
use tdx_uapi::KVM_TDX_INIT_MEM_REGION;
use tdx_uapi::KVM_TDX_INIT_VCPU;
use tdx_uapi::KVM_TDX_INIT_VM;
use tdx_uapi::KVM_TDX_MEASURE_MEMORY_REGION;

use crate::edges;
use crate::edges::Edge;
use crate::edges::GPA_SHARED;
use crate::kernel::Offer;
use crate::kernel::HOLDABLE;
use crate::kernel::SLOT_GPA;
use crate::kernel::SLOT_PAGES;
use crate::memory::PAGE;
use crate::memory::SHARED;
use crate::memory::SHARED_PAGES;
use crate::memory::SOURCE;
use crate::memory::SOURCE_PAGES;
use crate::program::Call;
use crate::program::Data;
use crate::program::Hold;
use crate::program::Kind;
use crate::program::On;
use crate::program::Patch;
use crate::program::Place;
use crate::program::Program;
use crate::program::Step;
use crate::requests;
use crate::requests::Argument;
use crate::requests::Request;

/// What firmware finds in RCX.
const HOB: u64 = 0x80_9000;

/// The longest program.
pub const MAX_STEPS: usize = 48;

/// What a seed becomes a program with.
pub struct Generator<'a> {
    rng: ChaCha8Rng,
    offer: &'a Offer,
}

/// Which programs are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Threads {
    /// Those with one thread: they need no second processor.
    One,
    /// Those with two, one in eight: each takes four times as long.
    Two,
    /// All.
    Both,
}

impl Threads {
    /// Whether the seed's program is one of these.
    pub fn include(self, seed: u64) -> bool {
        match self {
            Self::One => !has_two_threads(seed),
            Self::Two => has_two_threads(seed),
            Self::Both => true,
        }
    }
}

/// In pairs, for every other seed's program is of another kind.
fn has_two_threads(seed: u64) -> bool {
    seed / 2 % 8 == 7
}

/// Makes the program of a seed.
pub fn generate(seed: u64, offer: &Offer) -> Program {
    let mut generator = Generator::new(seed, offer);
    let mut program = generator.program(seed);
    if has_two_threads(seed) {
        generator.thread(&mut program);
    }
    program
}

/// Makes the program of a seed, but with one thread in any case.
pub fn generate_for_one(seed: u64, offer: &Offer) -> Program {
    Generator::new(seed, offer).program(seed)
}

/// The largest size that KVM gets through in no time.
const MAX_SIZE: u64 = 1 << 20;

/// A program that shows the one difference that is known and right.
///
/// No seed makes it: each time that C gives back a charge that it was refused, the count of the root
/// group, too, is one too low, for good. After the second time it seems to be so high that no TD can
/// be made any more.
pub fn refused_charge() -> Program {
    let calls = [
        Call::Limit { tds: 0 },
        Call::tdx(On::Vm, KVM_TDX_INIT_VM, Data::of(Kind::InitVm)),
    ];
    Program {
        steps: calls.into_iter().map(Step::new).collect(),
    }
}

impl<'a> Generator<'a> {
    pub fn new(seed: u64, offer: &'a Offer) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            offer,
        }
    }

    pub fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_range(0..n) == 0
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n.max(1))
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        *choices
            .choose(&mut self.rng)
            .expect("there is always something to choose from")
    }

    /// Makes a program with one thread.
    fn program(&mut self, seed: u64) -> Program {
        let mut calls = self.life();
        match self.below(20) {
            // Every other seed, in turn: so that within a few hundred programs each edge comes.
            _ if seed % 2 == 0 => calls = self.edges(calls, seed / 2),
            0..3 => {}
            3..14 => self.nearly(&mut calls),
            _ => self.wild(&mut calls),
        }
        calls.truncate(MAX_STEPS);
        Program {
            steps: calls.into_iter().map(Step::new).collect(),
        }
    }

    /// The life of a TD up to some point, as it should be.
    fn life(&mut self) -> Vec<Call> {
        let mut calls = vec![Call::kvm(On::Vm, requests::ENABLE_CAP, Kind::SplitIrqchip)];
        if self.one_in(4) {
            calls.push(self.capabilities());
        }
        calls.push(Call::tdx(On::Vm, KVM_TDX_INIT_VM, Data::of(Kind::InitVm)));
        let vcpus = if self.one_in(5) { 2 } else { 1 };
        for number in 0..vcpus {
            let vcpu = On::Vcpu(number);
            calls.push(Call::CreateVcpu { id: number.into() });
            if self.one_in(15) {
                calls.push(Call::tdx(vcpu, KVM_TDX_GET_CPUID, Data::of(Kind::Cpuid)));
            }
            calls.push(Call::kvm(vcpu, requests::SET_CPUID2, Kind::SupportedCpuid));
            calls.push(Call::tdx(vcpu, KVM_TDX_INIT_VCPU, Data::Value(HOB)));
        }
        calls.push(Call::CreateGmem {
            size: SLOT_PAGES * PAGE,
            flags: 0,
        });
        calls.push(Call::kvm(
            On::Vm,
            requests::SET_USER_MEMORY_REGION2,
            Kind::Slot,
        ));
        calls.push(Call::kvm(
            On::Vm,
            requests::SET_MEMORY_ATTRIBUTES,
            Kind::Attributes,
        ));
        calls.push(self.region());
        if self.one_in(5) {
            calls.push(self.region());
        }
        calls.push(Call::tdx(On::Vm, KVM_TDX_FINALIZE_VM, Data::Value(0)));
        if self.one_in(2) {
            calls.push(Call::Run { vcpu: 0 });
        }
        calls
    }

    fn capabilities(&mut self) -> Call {
        Call::tdx(On::Vm, KVM_TDX_CAPABILITIES, Data::of(Kind::Capabilities))
    }

    /// Some of the pages of the slot, measured or not.
    fn region(&mut self) -> Call {
        let first = self.rng.random_range(0..SLOT_PAGES);
        let pages = if self.one_in(3) {
            self.rng.random_range(1..=SLOT_PAGES - first)
        } else {
            1
        };
        let mut patches = Vec::new();
        for (offset, value, usual) in [
            (0, SOURCE + first * PAGE, SOURCE),
            (8, SLOT_GPA + first * PAGE, SLOT_GPA),
            (16, pages, 1),
        ] {
            if value != usual {
                patches.push(Patch {
                    offset,
                    width: 8,
                    value,
                });
            }
        }
        let mut call = Call::tdx(
            On::Vcpu(0),
            KVM_TDX_INIT_MEM_REGION,
            Data::patched(Kind::MemRegion, patches),
        );
        if let Call::Tdx { flags, .. } = &mut call {
            *flags = if self.one_in(3) {
                KVM_TDX_MEASURE_MEMORY_REGION
            } else {
                0
            };
        }
        call
    }

    /// Lets each command of a life first be tried with numbers at their edges.
    fn edges(&mut self, life: Vec<Call>, turn: u64) -> Vec<Call> {
        let mut calls = Vec::new();
        if self.one_in(2) {
            let call = self.capabilities();
            self.tries(&call, turn, &mut calls);
        }
        for call in life {
            match &call {
                Call::Tdx { id, .. } => {
                    let id = *id;
                    if id == KVM_TDX_INIT_VM {
                        self.configure(&mut calls);
                    }
                    // Edges are those of the first page.
                    let usual = if id == KVM_TDX_INIT_MEM_REGION {
                        self.command(id)
                    } else {
                        call.clone()
                    };
                    self.tries(&usual, turn, &mut calls);
                    calls.push(call);
                    // It takes more SEAMCALLs than all else.
                    if id == KVM_TDX_INIT_VCPU && self.one_in(3) {
                        let vcpu = On::Vcpu(0);
                        let call = Call::tdx(vcpu, KVM_TDX_GET_CPUID, Data::of(Kind::Cpuid));
                        self.tries(&call, turn, &mut calls);
                    }
                }
                _ => calls.push(call),
            }
        }
        // Where the TD is in another state than the command is for.
        for _ in 0..2 {
            let command = self.pick(&edges::COMMANDS);
            let call = self.command(command);
            let call = self.with_edges(&call, 1);
            let at = self.below(calls.len() + 1);
            calls.insert(at, call);
        }
        calls
    }

    /// Makes calls with numbers at their edges of one that is right.
    fn tries(&mut self, call: &Call, turn: u64, calls: &mut Vec<Call>) {
        /// Neighbours in the list have much in common.
        const STRIDE: u64 = 1009;

        let Call::Tdx { id, .. } = *call else {
            return;
        };
        let Some(edges) = self.offer.edges(id) else {
            return;
        };
        let (refused, accepted, pairs) = match id {
            KVM_TDX_INIT_VM => (5, 1, 3),
            KVM_TDX_INIT_MEM_REGION => (2, 4, 2),
            KVM_TDX_CAPABILITIES => (2, 3, 1),
            _ => (1, 1, 1),
        };
        let in_turn = |edges: &[Edge], count: u64| -> Vec<Call> {
            let numbers = turn * count..(turn + 1) * count;
            let at = numbers.map(|number| number.wrapping_mul(STRIDE) % edges.len() as u64);
            at.map(|at| {
                let mut call = call.clone();
                edges[at as usize].apply(&mut call);
                call
            })
            .collect()
        };
        if id == KVM_TDX_INIT_VCPU && self.one_in(6) {
            calls.extend([self.without_x2apic(), call.clone()]);
            calls.push(Call::kvm(
                On::Vcpu(0),
                requests::SET_CPUID2,
                Kind::SupportedCpuid,
            ));
        }
        calls.extend(in_turn(&edges.refused, refused));
        calls.extend((0..pairs).map(|_| self.with_edges(call, 2)));
        // The last, for the TD goes on with it.
        calls.extend(in_turn(&edges.accepted, accepted));
    }

    /// Puts numbers that KVM checks apart at their edges: which check comes first?
    fn with_edges(&mut self, call: &Call, count: usize) -> Call {
        let mut call = call.clone();
        let Call::Tdx { id, .. } = call else {
            return call;
        };
        let offer = self.offer;
        let mut groups: Vec<_> = offer
            .edges(id)
            .map_or(Vec::new(), |edges| edges.groups.iter().collect());
        for _ in 0..count.min(groups.len()) {
            let group = groups.swap_remove(self.below(groups.len()));
            self.pick(group).apply(&mut call);
        }
        call
    }

    /// A command as it should be.
    fn command(&mut self, command: u32) -> Call {
        let vcpu = On::Vcpu(0);
        match command {
            KVM_TDX_INIT_VM => Call::tdx(On::Vm, command, Data::of(Kind::InitVm)),
            KVM_TDX_INIT_VCPU => Call::tdx(vcpu, command, Data::Value(HOB)),
            KVM_TDX_INIT_MEM_REGION => Call::tdx(vcpu, command, Data::of(Kind::MemRegion)),
            KVM_TDX_FINALIZE_VM => Call::tdx(On::Vm, command, Data::Value(0)),
            KVM_TDX_GET_CPUID => Call::tdx(vcpu, command, Data::of(Kind::Cpuid)),
            _ => self.capabilities(),
        }
    }

    /// What the VM is told before KVM_TDX_INIT_VM that it hands to the module.
    fn configure(&mut self, calls: &mut Vec<Call>) {
        if self.one_in(6) {
            // The module counts in 25 MHz, and takes 100 MHz to 10 GHz.
            let khz = [
                24_999, 25_000, 99_999, 100_000, 124_999, 125_000, 199_999, 10_000_000, 10_025_000,
            ];
            calls.push(Call::Kvm {
                on: On::Vm,
                request: requests::SET_TSC_KHZ,
                data: Data::Value(self.pick(&khz)),
            });
        }
        if self.one_in(6) {
            let (cap, argument) = self.pick(&[
                (
                    KVM_CAP_X86_BUS_LOCK_EXIT,
                    KVM_BUS_LOCK_DETECTION_EXIT.into(),
                ),
                (
                    KVM_CAP_X86_NOTIFY_VMEXIT,
                    1 << 32 | u64::from(KVM_X86_NOTIFY_VMEXIT_ENABLED),
                ),
            ]);
            calls.push(Call::Kvm {
                on: On::Vm,
                request: requests::ENABLE_CAP,
                data: Data::patched(
                    Kind::SplitIrqchip,
                    vec![
                        Patch {
                            offset: 0,
                            width: 4,
                            value: cap.into(),
                        },
                        Patch {
                            offset: 8,
                            width: 8,
                            value: argument,
                        },
                    ],
                ),
            });
        }
    }

    /// KVM_SET_CPUID2 without x2APIC, which a vCPU of a TD has to have.
    fn without_x2apic(&self) -> Call {
        const ECX: usize = 20;
        const X2APIC: u32 = 1 << 21;

        let mut patches = Vec::new();
        for (number, entry) in self.offer.supported.iter().enumerate() {
            if entry.function == 1 {
                patches.push(Patch {
                    offset: (8 + number * 40 + ECX) as u16,
                    width: 4,
                    value: (entry.ecx & !X2APIC).into(),
                });
            }
        }
        Call::Kvm {
            on: On::Vcpu(0),
            request: requests::SET_CPUID2,
            data: Data::patched(Kind::SupportedCpuid, patches),
        }
    }

    /// Puts one thing wrong.
    fn nearly(&mut self, calls: &mut Vec<Call>) {
        let mut at = self.below(calls.len());
        // Three calls in four have nothing to do with TDX.
        if !self.one_in(3) {
            let is_tdx = |at: &usize| matches!(calls[*at], Call::Tdx { .. });
            at = self.pick(&(0..calls.len()).filter(is_tdx).collect::<Vec<_>>());
        }
        match self.below(10) {
            0 => {
                calls.remove(at);
            }
            1 if self.one_in(2) => {
                let again = calls[at].clone();
                calls.insert(at, again);
            }
            2 => {
                let to = self.below(calls.len());
                calls.swap(at, to);
            }
            3 => {
                let call = self.any_call();
                calls.insert(at, call);
            }
            _ => self.change(&mut calls[at]),
        }
        // What comes long after the mistake is seldom news.
        if !self.one_in(3) {
            let more = self.below(4);
            calls.truncate(at + 1 + more);
        }
    }

    /// Some calls of any kind, after a life that began well.
    fn wild(&mut self, calls: &mut Vec<Call>) {
        let kept = self.below(calls.len() + 1);
        let rest = calls.split_off(kept);
        for _ in 0..self.rng.random_range(1..=6) {
            let mut call = self.any_call();
            if self.one_in(3) {
                self.change(&mut call);
            }
            calls.push(call);
        }
        let more = self.below(4);
        calls.extend(rest.into_iter().take(more));
    }

    /// A call of any kind, with arguments that are mostly right.
    pub fn any_call(&mut self) -> Call {
        let vcpu = On::Vcpu(self.pick(&[0, 0, 0, 1, 2]));
        match self.below(16) {
            0 => Call::CreateVcpu {
                id: self.pick(&[0, 0, 1, 2, 3, 255, 4096, !0]),
            },
            1 => Call::CreateGmem {
                size: self.pick(&[1, 2, SLOT_PAGES, 16]) * PAGE,
                flags: self.pick(&[0, 0, 0, 1, 2, 4, 1 << 63]),
            },
            2 => self.hole(),
            3 => Call::Run {
                vcpu: self.pick(&[0, 0, 1]),
            },
            4 => Call::Close(self.pick(&[vcpu, vcpu, On::Vm, On::Gmem])),
            5 => self.slot(),
            6 => self.attributes(),
            7 => self.region(),
            8 | 9 => self.other_request(vcpu),
            10 => Call::tdx(On::Vm, KVM_TDX_INIT_VM, Data::of(Kind::InitVm)),
            11 => Call::tdx(vcpu, KVM_TDX_INIT_VCPU, Data::Value(self.rng.next_u64())),
            12 => Call::tdx(On::Vm, KVM_TDX_FINALIZE_VM, Data::Value(0)),
            13 if self.one_in(3) => Call::tdx(vcpu, KVM_TDX_GET_CPUID, Data::of(Kind::Cpuid)),
            14 if self.one_in(2) => self.capabilities(),
            _ => {
                // Any command on anything with anything.
                let on = self.pick(&[On::Vm, vcpu, vcpu]);
                let id = self.pick(&[0, 1, 2, 3, 4, 5, 5, 6, 7, 255, 0x8000_0000, !0]);
                let data = match self.pick(&[0, 1, 2, 3, 4]) {
                    0 => Data::of(Kind::Capabilities),
                    1 => Data::of(Kind::InitVm),
                    2 => Data::of(Kind::MemRegion),
                    3 => Data::of(Kind::Cpuid),
                    _ => Data::Value(self.bad_address()),
                };
                Call::tdx(on, id, data)
            }
        }
    }

    fn hole(&mut self) -> Call {
        let first = self.rng.random_range(0..SLOT_PAGES);
        let pages = self.pick(&[1, 1, 2, SLOT_PAGES, 1 << 40]);
        Call::PunchHole {
            offset: first * PAGE + self.pick(&[0, 0, 0, 0, 1]),
            size: self.pick(&[pages * PAGE, pages * PAGE, pages * PAGE, 0, 1]),
        }
    }

    /// KVM_SET_USER_MEMORY_REGION2: another slot, or slot 0 again, or its deletion.
    fn slot(&mut self) -> Call {
        let mut patches = Vec::new();
        let mut set = |offset, width, value| {
            patches.push(Patch {
                offset,
                width,
                value,
            })
        };
        match self.below(5) {
            0 | 1 => set(16, 8, 0),
            2 => {
                set(0, 4, 1);
                set(8, 8, SLOT_GPA * 2);
            }
            3 => set(8, 8, SLOT_GPA + PAGE),
            _ => {}
        }
        Call::Kvm {
            on: On::Vm,
            request: requests::SET_USER_MEMORY_REGION2,
            data: Data::patched(Kind::Slot, patches),
        }
    }

    fn attributes(&mut self) -> Call {
        let mut patches = Vec::new();
        if self.one_in(2) {
            let page = self.rng.random_range(0..SLOT_PAGES);
            for (offset, value) in [(0, SLOT_GPA + page * PAGE), (8, PAGE)] {
                patches.push(Patch {
                    offset,
                    width: 8,
                    value,
                });
            }
        }
        if !self.one_in(3) {
            patches.push(Patch {
                offset: 16,
                width: 8,
                value: 0,
            });
        }
        Call::Kvm {
            on: On::Vm,
            request: requests::SET_MEMORY_ATTRIBUTES,
            data: Data::patched(Kind::Attributes, patches),
        }
    }

    fn other_request(&mut self, vcpu: On) -> Call {
        let number = self.below(Request::all().len());
        let request = Request::all().nth(number).unwrap_or(requests::ENABLE_CAP);
        let belongs_on = if request.is_vcpus() { vcpu } else { On::Vm };
        let on = if self.one_in(10) {
            self.pick(&[On::Vm, vcpu, On::Gmem])
        } else {
            belongs_on
        };
        let data = match request.argument() {
            Argument::Value => Data::Value(self.value()),
            Argument::Struct(kind) => Data::of(kind),
        };
        Call::Kvm { on, request, data }
    }

    /// Changes one thing about a call.
    pub fn change(&mut self, call: &mut Call) {
        let any_on = self.pick(&[On::Vm, On::Vcpu(0), On::Vcpu(1), On::Gmem]);
        if matches!(call, Call::Tdx { id, .. } if edges::COMMANDS.contains(id)) && self.one_in(3) {
            *call = self.with_edges(call, 1);
            return;
        }
        match call {
            Call::Tdx {
                on,
                id,
                flags,
                hw_error,
                at,
                data,
            } => match self.below(16) {
                0 => *flags ^= 1 << self.below(32),
                1 => *flags = self.rng.next_u32(),
                2 => *hw_error = self.value(),
                3 => *id = self.pick(&[0, 1, 2, 3, 4, 5, 6, !0, self.rng.clone().next_u32()]),
                4 => *on = any_on,
                5 => *at = self.bad_place(24),
                _ => self.change_data(data),
            },
            Call::Kvm { on, data, .. } => match self.below(8) {
                0 => *on = any_on,
                _ => self.change_data(data),
            },
            Call::CreateVcpu { id } => *id = self.value(),
            Call::CreateGmem { size, flags } => match self.below(2) {
                // Not too much: its pages may be touched.
                0 => *size = self.pick(&[0, 1, PAGE - 1, PAGE, 64 * PAGE, !0, 1 << 63]),
                _ => *flags = self.value(),
            },
            Call::PunchHole { offset, size } => match self.below(2) {
                0 => *offset = self.value(),
                _ => *size = self.value(),
            },
            Call::Run { vcpu } => *vcpu = self.pick(&[0, 1, 2]),
            Call::Close(on) => *on = any_on,
            Call::Limit { tds } => *tds = self.value(),
        }
    }

    fn change_data(&mut self, data: &mut Data) {
        match data {
            Data::Value(value) => *value = self.value(),
            Data::Struct { kind, patches, at } => {
                if self.one_in(4) {
                    let size = self.offer.structure(*kind, None).len() as u16;
                    *at = self.bad_place(size);
                    return;
                }
                let change = self.patch(*kind);
                patches.retain(|patch| patch.offset != change.offset);
                patches.push(change);
            }
        }
    }

    /// A place that is wrong for a structure of this size, or nearly.
    fn bad_place(&mut self, size: u16) -> Place {
        match self.below(6) {
            0 => Place::ReadOnly,
            1 => Place::Address(self.bad_address()),
            2 => Place::Cut(size),
            3 => Place::Cut(size.saturating_sub(1)),
            _ => Place::Cut(self.rng.random_range(0..=size)),
        }
    }

    /// An address at which there is nothing.
    fn bad_address(&mut self) -> u64 {
        self.pick(&[0, 1, 8, PAGE, 1 << 46, 1 << 47, 1 << 63, !0, !0xfff, !7])
    }

    /// A change to one field of a structure.
    fn patch(&mut self, kind: Kind) -> Patch {
        let base = self.offer.structure(kind, None);
        let (offset, width) = self.field(kind, base.len());
        let start = usize::from(offset);
        let mut bytes = [0; 8];
        let end = base.len().min(start + usize::from(width));
        if let Some(field) = base.get(start..end) {
            bytes[..field.len()].copy_from_slice(field);
        }
        let now = u64::from_le_bytes(bytes);
        let bits = usize::from(width) * 8;
        let value = match self.below(8) {
            // Room for so many entries: where there is just enough is a place to be wrong.
            0..6 if matches!(kind, Kind::Capabilities) && width == 4 => {
                let enough = self.offer.configurable.len() as u64;
                self.pick(&[enough - 1, enough, enough + 1])
            }
            0..4 if matches!(kind, Kind::Cpuid) => self
                .rng
                .random_range(0..2 * self.offer.supported.len() as u64),
            0..3 => now ^ 1 << self.below(bits),
            3 => now.wrapping_add(1),
            4 => now.wrapping_sub(1),
            5 => now.wrapping_add(PAGE),
            _ => self.value(),
        };
        let value = match (kind, offset) {
            // KVM goes through all of it, page by page.
            (Kind::Attributes | Kind::Slot, 8 | 16) if bits == 64 => value % MAX_SIZE,
            _ if bits < 64 => value & ((1 << bits) - 1),
            _ => value,
        };
        Patch {
            offset,
            width,
            value,
        }
    }

    /// A field of a structure: offset and width.
    fn field(&mut self, kind: Kind, size: usize) -> (u16, u8) {
        let words = |count: usize| (0..count).map(|index| (index as u16 * 8, 8u8));
        match kind {
            Kind::InitVm => {
                let entries = self.offer.cpuid.len();
                match self.below(8) {
                    0 => (0, 8),
                    1 => (8, 8),
                    2 => (16 + self.below(18) as u16 * 8, 8),
                    3 => (160 + self.below(96) as u16, 1),
                    4 => self.pick(&[(256, 4), (256, 4), (260, 4)]),
                    // Function, index, flags, EAX to EDX, padding.
                    _ => (
                        264 + (self.below(entries) * 40 + self.below(10) * 4) as u16,
                        4,
                    ),
                }
            }
            Kind::Capabilities => self.pick(&[(2048, 4), (2048, 4), (2048, 4), (2052, 4), (64, 8)]),
            Kind::Cpuid => self.pick(&[(0, 4), (0, 4), (4, 4)]),
            Kind::SupportedCpuid => {
                let words = size / 4;
                if self.one_in(3) {
                    (0, 4)
                } else {
                    (self.below(words) as u16 * 4, 4)
                }
            }
            Kind::Slot => self.pick(&[
                (0, 4),
                (4, 4),
                (8, 8),
                (16, 8),
                (24, 8),
                (32, 8),
                (40, 4),
                (44, 4),
                (48, 8),
            ]),
            Kind::SplitIrqchip => self.pick(&[(0, 4), (4, 4), (8, 8), (16, 8), (40, 8)]),
            Kind::Msrs => self.pick(&[(0, 4), (8, 4), (12, 4), (16, 8)]),
            Kind::Zeros(size) if size < 8 => (0, 4),
            Kind::MemRegion | Kind::Attributes | Kind::PreFault | Kind::Zeros(_) => {
                let fields: Vec<_> = words(size / 8).collect();
                self.pick(&fields)
            }
        }
    }

    /// A value that has something special about it.
    fn value(&mut self) -> u64 {
        let nent = self.offer.configurable.len() as u64;
        match self.below(8) {
            0 => self.pick(&[0, 1, 2, 3, 7, 8, 24, 31, 32, 255, 256, 257, 4095]),
            1 => self.pick(&[nent - 1, nent, nent + 1, 48, 49, 79, 80, 100, 150, 255]),
            2 => 1 << self.below(64),
            3 => !0 - self.pick(&[0, 1, 7, 0xfff, 0x1fff]),
            4 => {
                let page = self.rng.random_range(0..SLOT_PAGES + 2);
                let base = self.pick(&[SLOT_GPA, SLOT_GPA * 2, GPA_SHARED, GPA_SHARED * 2, 0]);
                base.wrapping_add(page * PAGE)
            }
            5 => {
                let page = self.rng.random_range(0..SOURCE_PAGES + 2);
                SOURCE + page * PAGE + self.pick(&[0, 0, 0, 1, 0x800])
            }
            6 => SHARED + self.rng.random_range(0..SHARED_PAGES) * PAGE,
            _ => self.rng.next_u64() >> self.below(64),
        }
    }

    /// Spreads a program over two threads, and holds some of the calls.
    pub fn thread(&mut self, program: &mut Program) {
        let mut steps = Vec::new();
        for mut step in program.steps.drain(..) {
            step.thread = self.rng.random_range(0..2);
            let thread = step.thread;
            let is_held = self.one_in(4) && self.hold(&mut step);
            steps.push(step);
            if is_held && !self.one_in(4) {
                let mut meanwhile = Step::new(self.meanwhile());
                meanwhile.thread = 1 - thread;
                steps.push(meanwhile);
            }
        }
        steps.truncate(MAX_STEPS);
        program.steps = steps;
    }

    /// Lets a step be held, if that is possible.
    fn hold(&mut self, step: &mut Step) -> bool {
        let Call::Tdx { id, data, .. } = &mut step.call else {
            if matches!(step.call, Call::CreateVcpu { .. }) {
                return false;
            }
            if !self.one_in(4) {
                return false;
            }
            let seamcall = self.below(HOLDABLE.len());
            step.hold = Some(Hold::Seamcall(HOLDABLE[seamcall]));
            return true;
        };
        if let Data::Struct { at, .. } = data {
            if self.one_in(2) {
                let before = match *id {
                    KVM_TDX_INIT_VM => self.pick(&[0, 256, 264, 512]),
                    _ => self.pick(&[0, 8]),
                };
                *at = Place::Held(before);
                step.hold = Some(Hold::Memory);
                return true;
            }
        }
        let leaves: &[u16] = match *id {
            KVM_TDX_INIT_VM => &[9, 1, 21, 11],
            KVM_TDX_INIT_VCPU => &[10, 4, 22, 43],
            KVM_TDX_INIT_MEM_REGION => &[2, 3, 16],
            KVM_TDX_FINALIZE_VM => &[17],
            KVM_TDX_GET_CPUID => &[11],
            _ => return false,
        };
        step.hold = Some(Hold::Seamcall(self.pick(leaves)));
        true
    }

    /// A call to make while another one is held.
    fn meanwhile(&mut self) -> Call {
        let vcpu = On::Vcpu(self.pick(&[0, 0, 1]));
        match self.below(13) {
            0 => Call::tdx(On::Vm, KVM_TDX_INIT_VM, Data::of(Kind::InitVm)),
            1 => Call::tdx(On::Vm, KVM_TDX_FINALIZE_VM, Data::Value(0)),
            2 => Call::tdx(vcpu, KVM_TDX_INIT_VCPU, Data::Value(0)),
            3 => self.region(),
            4 => Call::CreateVcpu {
                id: self.pick(&[0, 1, 2]),
            },
            5 => Call::Run { vcpu: 0 },
            6 => self.hole(),
            7 => self.slot(),
            8 => self.attributes(),
            9 => Call::kvm(vcpu, requests::SET_CPUID2, Kind::SupportedCpuid),
            10 => self.capabilities(),
            11 => Call::tdx(vcpu, KVM_TDX_GET_CPUID, Data::of(Kind::Cpuid)),
            _ => self.any_call(),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use std::cell::OnceCell;
    use std::collections::HashSet;

    use super::*;

    pub fn offer() -> Offer {
        let entry = |function| kvm_bindings::kvm_cpuid_entry2 {
            function,
            eax: 0x1234,
            ..Default::default()
        };
        Offer {
            attributes: 1 << 28,
            xfam: 3,
            configurable: vec![entry(1), entry(0x8000_0008)],
            cpuid: vec![entry(1), entry(0x8000_0008)],
            supported: vec![entry(0), entry(1)],
            supported_attributes: 1 << 28,
            supported_xfam: 0xe7,
            td_cpuid: 3,
            edges: OnceCell::new(),
        }
    }

    #[test]
    fn a_seed_gives_one_program() {
        let offer = offer();
        for seed in 0..200 {
            let program = generate(seed, &offer);
            assert_eq!(program, generate(seed, &offer));
            assert!(program.steps.len() <= MAX_STEPS);
        }
    }

    #[test]
    fn seeds_give_many_programs() {
        let offer = offer();
        let programs: HashSet<String> = (0..500)
            .map(|seed| generate(seed, &offer).to_string())
            .collect();
        assert!(programs.len() > 450, "only {} of 500", programs.len());
    }

    #[test]
    fn each_edge_comes_within_500_seeds() {
        // As many configurable leaves as a module has.
        let mut offer = offer();
        let entry = offer.cpuid[0];
        offer.cpuid.resize(18, entry);
        offer.configurable.resize(18, entry);
        let (first, count) = (4711, 500);
        let mut seen = HashSet::new();
        for seed in first..first + count {
            for step in generate_for_one(seed, &offer).steps {
                seen.insert(step.call.to_string());
            }
        }
        for command in edges::COMMANDS {
            let all = edges::tests::all(command, &offer);
            let mut generator = Generator::new(0, &offer);
            let usual = generator.command(command);
            let missing: Vec<&Edge> = all
                .iter()
                .filter(|edge| {
                    let mut call = usual.clone();
                    edge.apply(&mut call);
                    !seen.contains(&call.to_string())
                })
                .collect();
            assert!(
                missing.is_empty(),
                "{command}: {} of {}: {missing:?}",
                missing.len(),
                all.len()
            );
        }
    }

    #[test]
    fn no_range_takes_for_ever() {
        let offer = offer();
        let mut seen = 0;
        for seed in 0..3000 {
            for step in generate(seed, &offer).steps {
                let Some(Data::Struct { kind, patches, .. }) = step.call.data() else {
                    continue;
                };
                if !matches!(kind, Kind::Attributes | Kind::Slot) {
                    continue;
                }
                for patch in patches {
                    if patch.width == 8 && patch.offset == 8 && *kind == Kind::Attributes {
                        assert!(patch.value < MAX_SIZE);
                        seen += 1;
                    }
                }
            }
        }
        assert!(seen > 0);
    }

    #[test]
    fn each_kind_of_call_and_of_hold_occurs() {
        let offer = offer();
        let mut seen = HashSet::new();
        let (mut memory, mut seamcall, mut single) = (0, 0, 0);
        for seed in 0..4000 {
            let program = generate(seed, &offer);
            assert!(Threads::Two.include(seed) || !program.is_threaded());
            single += usize::from(!program.is_threaded());
            for (index, step) in program.steps.iter().enumerate() {
                if program.holds_next(index) {
                    match step.hold {
                        Some(Hold::Memory) => memory += 1,
                        _ => seamcall += 1,
                    }
                }
                if let Call::Tdx { id, .. } = step.call {
                    seen.insert(id);
                }
            }
        }
        assert!((0..=7).all(|id| seen.contains(&id)), "{seen:?}");
        assert!(memory > 50 && seamcall > 100, "{memory}, {seamcall}");
        assert!((3400..3600).contains(&single), "{single}");
    }
}
