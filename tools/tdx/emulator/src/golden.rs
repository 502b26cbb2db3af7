// SPDX-License-Identifier: GPL-2.0

//! Holds the module against recorded behaviour of a real one.
//!
//! A recording is a folder of `*.jsonl` files. Each line is a scenario that starts from a fresh
//! machine: SEAMCALLs in order, each with the registers before and after, what the host wrote to
//! memory before, locks that another processor held meanwhile, and what changed in the module. The
//! README beside the files describes them.
//!
//! Nothing is passed silently. A step of a leaf that the module does not model is counted as not
//! modelled; if such a step changed something in the real module, the rest of its scenario is
//! counted apart, because the two states are different from then on. The same holds for steps whose
//! recording lacks something they depend on.

use crate::{
    host::{
        leaf as number,
        seamcall, //
    },
    machine::{
        self,
        GuestAction,
        Machine,
        TdcallRegs, //
    },
    module::{
        GuestExit,
        KeyProgram,
        LeafInfo,
        Lock,
        LockMode,
        LockRecord,
        Module,
        OpState,
        Platform,
        Regs,
        SysState,
        VcpuState,
        PROFILE_1_5_01, //
    },
};
use anyhow::{
    anyhow,
    bail,
    Context,
    Result, //
};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    path::Path,
    sync::Arc,
    thread, //
};

/// The leaves that Linux 7.3 calls, of which every modelled step must be equal.
pub const LINUX_LEAVES: [u64; 35] = [
    number::VP_ENTER,
    number::MNG_ADDCX,
    number::MEM_PAGE_ADD,
    number::MEM_SEPT_ADD,
    number::VP_ADDCX,
    number::MEM_PAGE_AUG,
    number::MEM_RANGE_BLOCK,
    number::MNG_KEY_CONFIG,
    number::MNG_CREATE,
    number::VP_CREATE,
    number::MNG_RD,
    number::MR_EXTEND,
    number::MR_FINALIZE,
    number::VP_FLUSH,
    number::MNG_VPFLUSHDONE,
    number::MNG_KEY_FREEID,
    number::MNG_INIT,
    number::VP_INIT,
    number::PHYMEM_PAGE_RDMD,
    number::VP_RD,
    number::PHYMEM_PAGE_RECLAIM,
    number::MEM_PAGE_REMOVE,
    number::SYS_KEY_CONFIG,
    number::SYS_INIT,
    number::SYS_RD,
    number::SYS_LP_INIT,
    number::SYS_TDMR_INIT,
    number::MEM_TRACK,
    number::PHYMEM_CACHE_WB,
    number::PHYMEM_PAGE_WBINVD,
    number::VP_WR,
    number::SYS_CONFIG,
    number::SYS_SHUTDOWN,
    number::SYS_UPDATE,
    number::SYS_DISABLE,
];

#[derive(Deserialize)]
struct Scenario {
    name: String,
    setup: String,
    pages: BTreeMap<String, String>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    leaf: Option<String>,
    n: Option<u64>,
    #[serde(default)]
    version: u64,
    #[serde(default)]
    lp: u32,
    rax: Option<String>,
    #[serde(default, rename = "in")]
    input: BTreeMap<String, String>,
    #[serde(default)]
    out: BTreeMap<String, String>,
    #[serde(default)]
    mem: Vec<Memory>,
    #[serde(default)]
    hold: Vec<Hold>,
    #[serde(default)]
    guest: Vec<Guest>,
    #[serde(default)]
    guest_out: Vec<BTreeMap<String, String>>,
    #[serde(default)]
    expect: Expect,
    env: Option<String>,
    enter_running: Option<u64>,
    enter_resume: Option<u64>,
    enter: Option<u64>,
}

#[derive(Deserialize)]
struct Memory {
    pa: String,
    fill: Option<u8>,
    #[serde(default)]
    len: usize,
    #[serde(default)]
    set: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Hold {
    obj: String,
    pa: Option<String>,
    gpa: Option<String>,
    #[serde(default)]
    level: u8,
    #[serde(default)]
    index: u32,
    mode: Option<String>,
}

#[derive(Deserialize)]
struct Guest {
    event: String,
    #[serde(default)]
    reason: u32,
    qual: Option<String>,
    gpa: Option<String>,
    intr_info: Option<String>,
    #[serde(default)]
    regs: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
struct Expect {
    #[serde(default)]
    pamt: BTreeMap<String, Vec<String>>,
    #[serde(default)]
    td: BTreeMap<String, BTreeMap<String, Value>>,
    #[serde(default)]
    kot: BTreeMap<String, (u8, String)>,
    #[serde(default)]
    vp: BTreeMap<String, BTreeMap<String, Value>>,
    sys_state: Option<u64>,
}

impl Step {
    /// RAX before the call.
    fn rax(&self, n: u64) -> Result<u64> {
        match &self.rax {
            Some(rax) => hex(rax),
            None => Ok(n | self.version << 16),
        }
    }
}

impl Guest {
    /// Whether it is a TDCALL that the module knows: TDG.VP.VMCALL or TDG.MEM.PAGE.ACCEPT.
    fn is_modelled_tdcall(&self) -> bool {
        let rax = self.regs.get("rax").map(String::as_str);
        matches!(rax, Some("0x0" | "0x6"))
    }

    /// What the guest does.
    fn action(&self) -> Result<GuestAction> {
        Ok(match self.event.as_str() {
            "yield" => GuestAction::Run,
            "tdcall" => {
                let mut set = TdcallRegs::default();
                for (name, value) in &self.regs {
                    // Where the register is among all.
                    let mut one = Regs::default();
                    *register(&mut one, name)? = 1;
                    let place = one.to_array().iter().position(|value| *value == 1);
                    set[place.context("no such register")?] = Some(hex(value)?);
                }
                GuestAction::Tdcall(set)
            }
            _ => vm_exit(
                self.reason,
                maybe_hex(&self.qual)?,
                maybe_hex(&self.gpa)?,
                maybe_hex(&self.intr_info)? as u32,
            ),
        })
    }
}

fn vm_exit(reason: u32, qualification: u64, gpa: u64, interruption: u32) -> GuestAction {
    // The recorded guests do not move by themselves.
    GuestAction::ExitInPlace(GuestExit::VmExit {
        reason,
        qualification,
        gpa,
        interruption,
        rip: 0,
    })
}

fn hex(text: &str) -> Result<u64> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).with_context(|| format!("not a number: {text}"))
}

fn maybe_hex(text: &Option<String>) -> Result<u64> {
    text.as_deref().map_or(Ok(0), hex)
}

/// What became of the steps of a leaf.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// All steps.
    pub steps: usize,
    /// Answered as the real module did.
    pub equal: usize,
    /// Answered otherwise.
    pub different: usize,
    /// Of leaves, or uses of leaves, that are not modelled.
    pub not_modelled: usize,
    /// Recorded without an input they depend on.
    pub incomplete: usize,
    /// After a step that is not modelled or incomplete and that changed something.
    pub after: usize,
}

impl Count {
    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.equal += other.equal;
        self.different += other.different;
        self.not_modelled += other.not_modelled;
        self.incomplete += other.incomplete;
        self.after += other.after;
    }
}

/// A step that was answered otherwise than the real module did.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The scenario.
    pub scenario: String,
    /// The number of the step in it.
    pub step: usize,
    /// The leaf.
    pub leaf: String,
    /// What is different.
    pub what: String,
}

/// What became of all steps.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// The number of scenarios.
    pub scenarios: usize,
    /// The number of steps that are no call but an event, like an interrupt.
    pub events: usize,
    /// The steps of each leaf.
    pub leaves: BTreeMap<(u64, String), Count>,
    /// All differences.
    pub differences: Vec<Difference>,
    /// What in the recordings means nothing here: where, and why. The step counts as incomplete,
    /// and so does what follows it as being after such a step.
    pub not_understood: Vec<String>,
}

impl Results {
    /// The sum of all leaves.
    pub fn total(&self) -> Count {
        let mut total = Count::default();
        for count in self.leaves.values() {
            total.add(count);
        }
        total
    }

    /// The number of steps of leaves that Linux calls and that differ.
    pub fn linux_differences(&self) -> usize {
        self.leaves
            .iter()
            .filter(|((number, _), _)| LINUX_LEAVES.contains(number))
            .map(|(_, count)| count.different)
            .sum()
    }
}

/// Runs all recordings in a folder.
pub fn run(folder: &Path) -> Result<Results> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .collect::<std::io::Result<Vec<_>>>()?
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "jsonl")
        })
        .collect();
    files.sort();
    if files.is_empty() {
        bail!("no recordings in {}", folder.display());
    }
    let mut results = Results::default();
    for file in files {
        let text = fs::read_to_string(&file)?;
        for (line, text) in (1..).zip(text.lines()) {
            let place = || format!("{}:{line}", file.display());
            let scenario: Scenario = serde_json::from_str(text).with_context(place)?;
            Run::new(&scenario)
                .and_then(|mut run| run.scenario(&mut results))
                .with_context(place)?;
        }
    }
    Ok(results)
}

/// A scenario in progress.
struct Run<'a> {
    scenario: &'a Scenario,
    machine: Arc<Machine>,
    module: Arc<Module>,
    /// A step that is not modelled changed something.
    lost: bool,
}

impl<'a> Run<'a> {
    fn new(scenario: &'a Scenario) -> Result<Self> {
        let two_packages = scenario.setup == "std2" || scenario.name.contains("2pkg");
        let run = Self {
            scenario,
            machine: Arc::new(machine::server(if two_packages { 2 } else { 1 })),
            module: Arc::new(Module::new(&PROFILE_1_5_01)),
            lost: false,
        };
        match scenario.setup.as_str() {
            "raw1" => {}
            "std1" | "std2" => run.bring_up(),
            setup => bail!("unknown setup {setup}"),
        }
        Ok(run)
    }

    /// Makes a call that must succeed.
    fn ok(&self, lp: u32, rax: u64, operands: &[u64]) -> Regs {
        let mut regs = crate::host::regs(rax, operands);
        seamcall(&self.module, &self.machine.lp(lp), &mut regs);
        assert_eq!(regs.rax, 0, "bring-up: leaf {rax}");
        regs
    }

    /// Brings up the module with two TDMRs, of which the second is not fully initialised.
    fn bring_up(&self) {
        const INFO: u64 = 0x1180_0000;
        let lp0 = self.machine.lp(0);
        self.ok(0, number::SYS_INIT, &[]);
        for lp in 0..lp0.lp_count() {
            self.ok(lp, number::SYS_LP_INIT, &[]);
        }
        for tdmr in 0..2 {
            let pamt = 0x1000_0000 + tdmr * 0x80_0000;
            let mut info = vec![
                0x4000_0000 * (tdmr + 1),
                0x4000_0000,
                pamt,
                0x1000,
                pamt + 0x1000,
                0x2000,
                pamt + 0x10_0000,
                0x40_0000,
            ];
            if tdmr == 0 {
                info.extend([0x3f00_0000, 0x100_0000]);
            }
            for (index, word) in (0..).zip(info) {
                lp0.write64(INFO + 512 * tdmr + 8 * index, word);
            }
            lp0.write64(INFO + 4096 + 8 * tdmr, INFO + 512 * tdmr);
        }
        self.ok(0, number::SYS_CONFIG, &[INFO + 4096, 2, 32]);
        for package in 0..lp0.package_count() {
            self.ok(package * 2, number::SYS_KEY_CONFIG, &[]);
        }
        while self.ok(0, number::SYS_TDMR_INIT, &[0x4000_0000]).rdx < 0x8000_0000 {}
        self.ok(0, number::SYS_TDMR_INIT, &[0x8000_0000]);
        for index in 0..0x2000 / 8 {
            lp0.write64(INFO + 8 * index, 0);
        }
    }

    fn scenario(&mut self, results: &mut Results) -> Result<()> {
        results.scenarios += 1;
        let steps = &self.scenario.steps;
        let mut index = 0;
        while let Some(step) = steps.get(index) {
            let Some(number) = step.enter_running else {
                self.count(index, results, None);
                index += 1;
                continue;
            };
            // The steps up to the next mark run while the guest does; its VP.ENTER is recorded
            // when it ends.
            results.events += 2;
            let is_end = |step: &Step| step.enter_resume == Some(number);
            let is_enter = |step: &Step| step.enter == Some(number);
            let end = steps.iter().position(is_end).context("no end")?;
            let enter = steps.iter().position(is_enter).context("no VP.ENTER")?;
            self.count(enter, results, Some(index + 1..end));
            index = enter + 1;
        }
        Ok(())
    }

    /// Makes the step of that index and counts it. Those of `meanwhile` are made while its guest
    /// runs.
    fn count(&mut self, index: usize, results: &mut Results, meanwhile: Option<Range<usize>>) {
        if let Err(error) = self.try_count(index, results, meanwhile) {
            let scenario = self.scenario;
            let step = &scenario.steps[index];
            if let (Some(leaf), Some(n)) = (&step.leaf, step.n) {
                results
                    .leaves
                    .entry((n, leaf.clone()))
                    .or_default()
                    .incomplete += 1;
            }
            let what = format!("{} step {index}: {error:#}", scenario.name);
            results.not_understood.push(what);
            self.lost = true;
        }
    }

    fn try_count(
        &mut self,
        index: usize,
        results: &mut Results,
        meanwhile: Option<Range<usize>>,
    ) -> Result<()> {
        let scenario = self.scenario;
        let step = &scenario.steps[index];
        results.events += usize::from(step.leaf.is_none());
        if let Some(env) = &step.env {
            self.environment(env)?;
        }
        let (Some(leaf), Some(n)) = (&step.leaf, step.n) else {
            return Ok(());
        };
        let key = (n, leaf.clone());
        let count = results.leaves.entry(key.clone()).or_default();
        count.steps += 1;
        if self.lost {
            count.after += 1;
        } else if self.is_incomplete(step, n) {
            count.incomplete += 1;
            self.lost = true;
        } else if !self.is_modelled(step, n)? {
            count.not_modelled += 1;
            self.lost |= self.changed_something(step)?;
        } else {
            let what = match meanwhile.clone() {
                None => self.step(step, n, || {})?,
                Some(others) => {
                    let mut other = Run {
                        scenario,
                        machine: self.machine.clone(),
                        module: self.module.clone(),
                        lost: false,
                    };
                    self.step(step, n, || {
                        other.machine.wait_for_guest();
                        for index in others {
                            other.count(index, results, None);
                        }
                        other.machine.resume_guest();
                    })?
                }
            };
            let count = results.leaves.entry(key).or_default();
            if what.is_empty() {
                count.equal += 1;
            } else {
                count.different += 1;
                results.differences.push(Difference {
                    scenario: scenario.name.clone(),
                    step: index,
                    leaf: leaf.clone(),
                    what: what.join("; "),
                });
            }
            return Ok(());
        }
        for index in meanwhile.into_iter().flatten() {
            self.count(index, results, None);
        }
        Ok(())
    }

    /// Whether the module models what the step does.
    fn is_modelled(&self, step: &Step, n: u64) -> Result<bool> {
        // What does not get as far as to a leaf does not need one. A leaf that neither module has
        // is answered alike.
        if self.module.refusal(step.rax(n)?).is_some() {
            return Ok(true);
        }
        let known = LeafInfo::by_number(n as u16);
        let leaf = known.is_none_or(|info| info.modelled);
        let guest = step.guest.iter().all(|guest| match guest.event.as_str() {
            "vmexit" | "yield" => true,
            "tdcall" => guest.is_modelled_tdcall(),
            _ => false,
        });
        Ok(leaf && guest)
    }

    /// Whether a step that is not modelled changed something in the real module: it succeeded, it
    /// ran a guest, or what is recorded of the state is not what it is here. A module that is shut
    /// down stays as it is.
    fn changed_something(&self, step: &Step) -> Result<bool> {
        if self.module.sys_state() == SysState::Shutdown {
            return Ok(false);
        }
        let success = step.out.get("rax").is_some_and(|rax| rax == "0x0");
        let mut what = Vec::new();
        self.expect(&step.expect, &mut what)?;
        Ok(success || !step.guest.is_empty() || !what.is_empty())
    }

    /// Whether the step depends on memory that the recording does not have.
    ///
    /// That is so when TDH.MNG.INIT succeeded with parameters of which nothing is recorded: all
    /// zero, they cannot be right, as some XFAM bits must be set.
    fn is_incomplete(&self, step: &Step, n: u64) -> bool {
        let success = step.out.get("rax").is_some_and(|rax| rax == "0x0");
        let Some(Ok(params)) = step.input.get("rdx").map(|rdx| hex(rdx)) else {
            return false;
        };
        let bits = self.machine.config().layout.address_bits;
        let params = params & ((1 << bits) - 1);
        let zero = |bytes: Vec<u8>| bytes.iter().all(|byte| *byte == 0);
        n == number::MNG_INIT
            && success
            && step.mem.is_empty()
            && zero(self.machine.read_bytes(params, 1024))
    }

    fn environment(&self, what: &str) -> Result<()> {
        let mut conditions = self.machine.conditions();
        match what {
            "RDRAND/RDSEED fail from now on" => conditions.entropy = false,
            "RDRAND/RDSEED work again" => conditions.entropy = true,
            "PCONFIG returns device busy" => conditions.program_key = KeyProgram::TableBusy,
            "PCONFIG returns entropy error" => conditions.program_key = KeyProgram::NoEntropy,
            "PCONFIG succeeds" => conditions.program_key = KeyProgram::Done,
            "no host interrupt pending" => conditions.interrupt_pending = false,
            _ if what.starts_with("host interrupt pending") => conditions.interrupt_pending = true,
            _ => {
                drop(conditions);
                return self.other_environment(what);
            }
        }
        Ok(())
    }

    fn other_environment(&self, what: &str) -> Result<()> {
        if let Some(page) = what.strip_prefix("set TDR.fatal of ") {
            let tdr = self.page(page)?;
            self.module.make_fatal(&self.machine.lp(0), tdr);
        } else if let Some((count, rest)) = what.split_once(" further TDH.SYS.TDMR.INIT(") {
            let (base, _) = rest.split_once(')').unwrap_or((rest, ""));
            for _ in 0..count.parse()? {
                // Of these, only the state they leave is recorded.
                let mut regs = crate::host::regs(number::SYS_TDMR_INIT, &[hex(base)?]);
                seamcall(&self.module, &self.machine.lp(0), &mut regs);
            }
        } else if let Some((msr, value)) = what.split_once('=') {
            let value = value.split_whitespace().next().unwrap_or(value);
            let mut conditions = self.machine.conditions();
            match msr.split_whitespace().last() {
                Some("TSC" | "IA32_TIME_STAMP_COUNTER") => conditions.tsc = hex(value)?,
                Some("IA32_TSC_ADJUST") => conditions.msrs.tsc_adjust = hex(value)?,
                Some("IA32_MISC_ENABLE") => conditions.msrs.misc_enable = hex(value)?,
                Some("IA32_ARCH_CAPABILITIES") => {
                    conditions.msrs.arch_capabilities = hex(value)?;
                }
                _ => bail!("unknown event: {what}"),
            }
        } else {
            bail!("unknown event: {what}");
        }
        Ok(())
    }

    /// The address of a page by its name.
    fn page(&self, name: &str) -> Result<u64> {
        let pa = self.scenario.pages.get(name);
        hex(pa.with_context(|| format!("unknown page {name}"))?)
    }

    /// Makes a step's call. Returns what is different.
    ///
    /// `meanwhile` runs beside the call.
    fn step(&self, step: &Step, n: u64, meanwhile: impl FnOnce()) -> Result<Vec<String>> {
        for memory in &step.mem {
            // The host sees the same memory through every shared HKID.
            let bits = self.machine.config().layout.address_bits;
            let pa = hex(&memory.pa)? & ((1 << bits) - 1);
            if let Some(fill) = memory.fill {
                self.machine.write_bytes(pa, &vec![fill; memory.len]);
            }
            for (offset, bytes) in &memory.set {
                let bytes: Vec<u8> = (0..bytes.len() / 2)
                    .map(|index| {
                        u8::from_str_radix(&bytes[2 * index..2 * index + 2], 16)
                            .map_err(|error| anyhow!("{error}"))
                    })
                    .collect::<Result<_>>()?;
                self.machine.write_bytes(pa + hex(offset)?, &bytes);
            }
        }
        let mut held = Vec::new();
        let other = self.machine.lp((step.lp + 1) % 2);
        for hold in &step.hold {
            let record = self.record(hold)?;
            if !self.module.hold(&other, record) {
                bail!("cannot hold {record:?}");
            }
            held.push(record);
        }

        let mut guest: Vec<_> = step
            .guest
            .iter()
            .map(Guest::action)
            .collect::<Result<_>>()?;
        guest.push(vm_exit(1, 0, 0, 0));
        self.machine.conditions().set_guest(guest);

        let mut before = junk();
        before.rax = step.rax(n)?;
        for (name, value) in &step.input {
            *register(&mut before, name)? = hex(value)?;
        }
        let mut after = before;
        let lp = self.machine.lp(step.lp);
        thread::scope(|scope| {
            let (module, regs) = (&self.module, &mut after);
            if step.guest.iter().any(|guest| guest.event == "yield") {
                scope.spawn(move || seamcall(module, &lp, regs));
            } else {
                seamcall(module, &lp, regs);
            }
            meanwhile();
        });
        for record in held.iter().rev() {
            self.module.release(&other, *record);
        }

        let mut what = Vec::new();
        for name in REGISTERS {
            let expected = match step.out.get(name) {
                Some(value) => hex(value)?,
                None => *register(&mut before, name)?,
            };
            let got = *register(&mut after, name)?;
            if got != expected && !is_untrusted(n, name, &before, &after) {
                what.push(format!("{name} is {got:#x}, expected {expected:#x}"));
            }
        }
        let seen = std::mem::take(&mut self.machine.conditions().tdcall_results);
        if seen.len() != step.guest_out.len() {
            what.push(format!(
                "{} TDCALLs returned, expected {}",
                seen.len(),
                step.guest_out.len()
            ));
        }
        for (mut seen, expected) in seen.into_iter().zip(&step.guest_out) {
            for (name, value) in expected {
                let (got, expected) = (*register(&mut seen, name)?, hex(value)?);
                if got != expected {
                    what.push(format!("guest: {name} is {got:#x}, expected {expected:#x}"));
                }
            }
        }
        self.expect(&step.expect, &mut what)?;
        Ok(what)
    }

    fn record(&self, hold: &Hold) -> Result<LockRecord> {
        let pa = maybe_hex(&hold.pa)?;
        let lock = match hold.obj.as_str() {
            "pamt" => Lock::Page {
                pa,
                level: hold.level,
            },
            "opstate" => Lock::OpState(pa),
            "septtree" => Lock::SeptTree(pa),
            "epoch" => Lock::Epoch(pa),
            "septent" => self
                .module
                .sept_entry_lock(&self.machine.lp(0), pa, maybe_hex(&hold.gpa)?, hold.level)
                .context("no such Secure EPT entry")?,
            "kot" => Lock::Kot,
            "global" => Lock::Global,
            "wbt" => Lock::Wbcache(hold.index),
            "tdmr" => Lock::Tdmr(hold.index),
            other => bail!("unknown lock {other}"),
        };
        let mode = match hold.mode.as_deref() {
            Some("sh") => LockMode::Shared,
            _ => LockMode::Exclusive,
        };
        Ok(LockRecord { lock, mode })
    }

    /// Compares the state after a step.
    fn expect(&self, expect: &Expect, what: &mut Vec<String>) -> Result<()> {
        let lp = self.machine.lp(0);
        for (page, state) in &expect.pamt {
            let pa = self.page(page)?;
            let info = self.module.page_info(&lp, pa);
            // What has no PAMT yet is nobody's.
            let name = info.map_or("NDA", |info| info.page_type.name());
            let level = info.map_or(0, |info| info.level);
            let expected_level = match state.get(2).map(String::as_str) {
                None => 0,
                Some("2M") => 1,
                Some(_) => 2,
            };
            let expected = state.first().map_or("", String::as_str);
            if name != expected || level != expected_level {
                what.push(format!("{page} is {name}/{level}, expected {state:?}"));
                continue;
            }
            let owner = match state.get(1).map(String::as_str) {
                None | Some("0x0") => 0,
                Some(owner) => self.page(owner).or_else(|_| hex(owner))?,
            };
            if name != "NDA" && name != "RSVD" && info.map(|info| info.owner) != Some(owner) {
                what.push(format!(
                    "{page} has another owner than {state:?}: {info:x?}"
                ));
            }
        }
        for (hkid, (state, packages)) in &expect.kot {
            let entry = self.module.kot_entry(hkid.parse()?);
            if entry.state as u8 != *state || u64::from(entry.packages) != hex(packages)? {
                what.push(format!(
                    "HKID {hkid} is {entry:?}, expected {state} {packages}"
                ));
            }
        }
        for (page, fields) in &expect.td {
            let Some(info) = self.module.td_info(&lp, self.page(page)?) else {
                what.push(format!("{page} is not a TD"));
                continue;
            };
            // The recording shows what lies where the TDCS was, even if that is another page now.
            let lost_tdcs = info.op_state == OpState::Unallocated && info.control_pages >= 6;
            let in_tdcs = ["op_state", "num_vcpus", "num_assoc", "epoch"];
            for (field, expected) in fields {
                if lost_tdcs && in_tdcs.contains(&field.as_str()) {
                    continue;
                }
                let got = match field.as_str() {
                    "lifecycle" => info.life_cycle as u64,
                    "op_state" => info.op_state as u64,
                    "num_vcpus" => info.vcpus,
                    "num_assoc" => info.associated_vcpus,
                    "chldcnt" => info.pages,
                    "num_tdcx" => info.control_pages,
                    "fatal" => u64::from(info.fatal),
                    "epoch" => info.epoch,
                    "mrtd" => {
                        let mrtd = info.mrtd.unwrap_or([0; 48]);
                        let text: String = mrtd.iter().map(|byte| format!("{byte:02x}")).collect();
                        if expected.as_str() != Some(text.as_str()) {
                            what.push(format!("{page}: MRTD is {text}, expected {expected}"));
                        }
                        continue;
                    }
                    other => bail!("unknown field {other}"),
                };
                if expected.as_u64() != Some(got) {
                    what.push(format!("{page}: {field} is {got}, expected {expected}"));
                }
            }
        }
        for (page, fields) in &expect.vp {
            let Some(info) = self.module.vcpu_info(&lp, self.page(page)?) else {
                what.push(format!("{page} is not a vCPU"));
                continue;
            };
            for (field, expected) in fields {
                let got = match field.as_str() {
                    "state" => i64::from(info.state as u8),
                    "pages" => info.pages as i64,
                    "assoc" => info.associated_lp.map_or(-1, i64::from),
                    "idx" => info.index as i64,
                    "epoch" => info.epoch as i64,
                    "lastexit" => info.last_exit as i64,
                    other => bail!("unknown field {other}"),
                };
                let uninitialized = info.state == VcpuState::Uninitialized;
                if expected.as_i64() != Some(got) && !(uninitialized && field == "idx") {
                    what.push(format!("{page}: {field} is {got}, expected {expected}"));
                }
            }
        }
        if let Some(expected) = expect.sys_state {
            let got = self.module.sys_state() as u64;
            if got != expected {
                what.push(format!("the module's state is {got}, expected {expected}"));
            }
        }
        Ok(())
    }
}

/// The registers in the recordings.
const REGISTERS: [&str; 15] = [
    "rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// What registers hold that a step does not name.
fn junk() -> Regs {
    Regs {
        rax: 0,
        rcx: 0xc1c1_c1c1_c1c1,
        rdx: 0xd1d1_d1d1_d1d1,
        rbx: 0xb0b0_b0b0_000b,
        rbp: 0xb5b5_b5b5_000b,
        rsi: 0xb6b6_b6b6_000b,
        rdi: 0xb7b7_b7b7_000b,
        r8: 0x8181_8181_8181,
        r9: 0x9191_9191_9191,
        r10: 0xa1a1_a1a1_a1a1,
        r11: 0xb1b1_b1b1_b1b1,
        r12: 0,
        r13: 0,
        r14: 0xbebe_bebe_000e,
        r15: 0xbfbf_bfbf_000f,
    }
}

fn register<'a>(regs: &'a mut Regs, name: &str) -> Result<&'a mut u64> {
    Ok(match name {
        "rax" => &mut regs.rax,
        "rcx" => &mut regs.rcx,
        "rdx" => &mut regs.rdx,
        "rbx" => &mut regs.rbx,
        "rbp" => &mut regs.rbp,
        "rsi" => &mut regs.rsi,
        "rdi" => &mut regs.rdi,
        "r8" => &mut regs.r8,
        "r9" => &mut regs.r9,
        "r10" => &mut regs.r10,
        "r11" => &mut regs.r11,
        "r12" => &mut regs.r12,
        "r13" => &mut regs.r13,
        "r14" => &mut regs.r14,
        "r15" => &mut regs.r15,
        other => bail!("unknown register {other}"),
    })
}

/// Whether the recording says that a value in it means nothing: it comes from the invented
/// platform under the real module's code. Only values of successful reads.
fn is_untrusted(n: u64, register: &str, before: &Regs, after: &Regs) -> bool {
    if register != "r8" || after.rax != 0 {
        return false;
    }
    let class = before.rdx >> 56 & 0x3f;
    let code = before.rdx & 0xff_ffff;
    match n {
        // The build date.
        number::SYS_RD => class == 8 && code == 1,
        // Random bits, and the time-stamp counter.
        number::MNG_RD => {
            class == 0 && (0x20..0x24).contains(&code) || class == 0x11 && code == 0xa
        }
        // The time-stamp counter.
        number::VP_RD => class == 0 && code == 0x2010,
        _ => false,
    }
}
