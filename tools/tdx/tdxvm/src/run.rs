// SPDX-License-Identifier: GPL-2.0

//! Takes a TD through its set-up, step by step.

use std::fs::File;
use std::io;
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::time::Instant;

use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use kvm_bindings::kvm_create_guest_memfd;
use kvm_bindings::kvm_enable_cap;
use kvm_bindings::kvm_memory_attributes;
use kvm_bindings::kvm_userspace_memory_region2;
use kvm_bindings::KVM_CAP_SPLIT_IRQCHIP;
use kvm_bindings::KVM_CAP_VM_TYPES;
use kvm_bindings::KVM_MEMORY_ATTRIBUTE_PRIVATE;
use kvm_bindings::KVM_MEM_GUEST_MEMFD;
use kvm_bindings::KVM_X86_TDX_VM;
use kvm_ioctls::Cap;
use kvm_ioctls::Kvm;
use kvm_ioctls::VcpuFd;
use kvm_ioctls::VmFd;
use tdx_uapi::cpuid;
use tdx_uapi::Cpuid;
use tdx_uapi::ATTR_SEPT_VE_DISABLE;
use thiserror::Error;

use crate::load;
use crate::load::Layout;
use crate::load::Load;
use crate::load::LoadError;
use crate::measure;
use crate::measure::Mrtd;
use crate::mem::Mapping;
use crate::module;
use crate::module::LiveTds;
use crate::report::Failed;
use crate::report::Loaded;
use crate::report::Report;
use crate::report::Step;
use crate::tdvf::Tdvf;
use crate::tdvf::PAGE_SIZE;
use crate::tdx;
use crate::tdx::IoctlError;

/// Pages handed to KVM at once: often enough to show progress.
const PAGES_PER_CALL: u64 = 64;

/// Times a region may stop without a page added before it is given up.
const STALLS: u32 = 1000;

/// TSC frequencies that a TD can have.
const TSC_KHZ: std::ops::RangeInclusive<u64> = 100_000..=10_000_000;

/// Routing entries that are left to a user-space I/O APIC.
const IOAPIC_PINS: u64 = 24;

/// What to run.
pub struct Options {
    /// Name of the firmware's file, for the report.
    pub firmware_name: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// RAM in bytes.
    pub memory: u64,
    /// How many TDs to make, one after the other.
    pub repeat: u64,
    /// Whether to try KVM_RUN once at the end.
    pub enter: bool,
    /// Whether people read standard output.
    pub human: bool,
}

/// Why a run failed.
#[derive(Debug, Error)]
pub enum RunError {
    #[error("{step} ({detail}): {error}")]
    Ioctl {
        step: &'static str,
        detail: String,
        error: IoctlError,
    },
    #[error("cannot open /dev/kvm: {0}")]
    NoKvm(IoctlError),
    #[error(
        "KVM cannot make TDs: it offers VM types {0:#x}, bit {KVM_X86_TDX_VM} (TDX) is not set"
    )]
    NoTdx(i32),
    #[error("KVM does not offer {0}")]
    NoCapability(&'static str),
    #[error("the TD was to have {asked} vCPUs, KVM offers at most {offered}")]
    TooManyVcpus { asked: u32, offered: i32 },
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("cannot map memory: {0}")]
    Memory(io::Error),
    #[error("KVM_TDX_INIT_MEM_REGION stops at GPA {gpa:#x} again and again: {error}")]
    Stuck { gpa: u64, error: IoctlError },
    #[error("the kernel said that KVM_TDX_INIT_MEM_REGION at GPA {gpa:#x} is done, but {left} pages are left")]
    NotDone { gpa: u64, left: u64 },
    #[error("MRTD differs: the TDX module has {module}, the file gives {expected}")]
    MrtdDiffers { module: Mrtd, expected: Mrtd },
    #[error("cannot read the TD's MRTD from the module: {0}")]
    MrtdUnknown(String),
}

impl RunError {
    fn step(&self) -> Option<&'static str> {
        match self {
            Self::Ioctl { step, .. } => Some(step),
            Self::Stuck { .. } | Self::NotDone { .. } => Some("KVM_TDX_INIT_MEM_REGION"),
            _ => None,
        }
    }

    /// What the person in front of the terminal can do.
    pub fn advice(&self) -> String {
        match self {
            Self::NoKvm(error) if error.errno == libc::EACCES => {
                "run as root, or as a member of the group that owns /dev/kvm"
            }
            Self::NoKvm(_) => "load kvm_intel; the CPU needs VMX, enabled by the BIOS",
            Self::NoTdx(_) => {
                "load kvm_intel with tdx=1 in a kernel with CONFIG_KVM_INTEL_TDX, and see what \
                 `dmesg | grep -i tdx` says: the TDX module must be initialized"
            }
            Self::NoCapability(_) => "use a kernel with CONFIG_KVM_INTEL_TDX, 6.16 or newer",
            Self::TooManyVcpus { .. } => "give fewer --vcpus: a TD has at most the host's CPUs",
            Self::Load(LoadError::Outside { .. }) => "give more --memory",
            Self::Load(LoadError::BadMemory(_)) => "give --memory as a multiple of 4K",
            Self::Load(LoadError::HobTooLong { .. }) => "use another firmware",
            Self::Memory(_) => "give less --memory",
            Self::Stuck { .. } => "see what interrupts this process, and dmesg",
            Self::NotDone { .. } => "this is a bug in the kernel: see dmesg",
            Self::MrtdDiffers { .. } => {
                "the TD does not hold what the file says: compare the sections and the order in \
                 which they were loaded"
            }
            Self::MrtdUnknown(_) => {
                "look at /sys/kernel/debug/tdx_emulator/tds, and let no other TD start meanwhile"
            }
            Self::Ioctl { step, error, .. } => return ioctl_advice(step, *error).to_string(),
        }
        .to_string()
    }
}

fn ioctl_advice(step: &str, error: IoctlError) -> &'static str {
    if error
        .status()
        .is_some_and(|status| (status.0 >> 40) & 0xff == 0xff)
    {
        return "the TDX module cannot be called: see `dmesg | grep -i tdx`";
    }
    match (step, error.errno) {
        (_, libc::EIO) => {
            "the TDX module refused what KVM took for granted: dmesg has the SEAMCALL and its \
             status; this TD cannot be used any more"
        }
        (_, libc::ENOMEM) => "free memory on the host, or raise this cgroup's memory limit",
        (_, libc::EMFILE) => "raise the limit of open files (ulimit -n)",
        ("KVM_TDX_INIT_VM", libc::ENOSPC) => "all TDX key IDs are in use: stop another TD",
        ("KVM_TDX_INIT_VM", libc::EBUSY) => {
            "the cgroup's limit of TDs is reached (misc.max), or the VM has vCPUs already"
        }
        ("KVM_TDX_INIT_VM", libc::EAGAIN) => "the CPU ran out of entropy: try again",
        ("KVM_TDX_INIT_VM", libc::EINVAL) if error.hw_error != 0 => {
            "the TDX module refuses a parameter: the status names it"
        }
        ("KVM_TDX_INIT_VM", libc::EINVAL) => {
            "KVM refuses attributes, XFAM or a CPUID leaf: compare with `tdxvm caps`"
        }
        ("KVM_TDX_INIT_VCPU", libc::EINVAL) => {
            "the vCPU needs X2APIC in its CPUID, and may be initialized only once"
        }
        ("KVM_TDX_INIT_MEM_REGION", libc::EEXIST) => "the page was added before",
        ("KVM_TDX_INIT_MEM_REGION", libc::EFAULT) => {
            "the page has no memory slot, is not private, or its source cannot be read"
        }
        ("KVM_TDX_FINALIZE_VM", libc::EBUSY) => "another thread works on this TD: try again",
        ("KVM_CREATE_VM", libc::EINVAL) => "KVM cannot make VMs of this type: see `tdxvm caps`",
        (_, libc::EINTR) => "a signal came: try again",
        _ => "see dmesg",
    }
}

/// Reads the CPU's time stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: Every CPU that this is compiled for has RDTSC, and Linux does not forbid it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Times ioctls and keeps what they ended with.
struct Recorder {
    human: bool,
    steps: Vec<Step>,
}

impl Recorder {
    fn print(&self, text: std::fmt::Arguments<'_>) {
        if self.human {
            // A closed pipe is no reason to leave a TD half-way.
            let _ = writeln!(io::stdout(), "{text}");
        }
    }

    /// Starts a step that issues the same ioctl several times.
    fn start(name: &'static str, detail: String) -> Step {
        Step {
            name,
            detail,
            result: "ok".to_string(),
            hw_error: None,
            calls: 0,
            resumed: 0,
            ticks: 0,
            microseconds: 0,
        }
    }

    /// Issues an ioctl once and adds it to a step.
    fn issue<T>(step: &mut Step, ioctl: impl FnOnce() -> T) -> T {
        let (clock, start) = (Instant::now(), ticks());
        let result = ioctl();
        step.ticks += ticks().wrapping_sub(start);
        step.microseconds += clock.elapsed().as_micros() as u64;
        step.calls += 1;
        result
    }

    /// Ends a step.
    fn end(&mut self, mut step: Step, error: Option<IoctlError>) -> Result<(), RunError> {
        step.set_result(error);
        self.print(format_args!("{step}"));
        let failed = error.map(|error| RunError::Ioctl {
            step: step.name,
            detail: step.detail.clone(),
            error,
        });
        self.steps.push(step);
        failed.map_or(Ok(()), Err)
    }

    /// Issues an ioctl that makes a step of its own.
    fn call<T, E: Into<IoctlError>>(
        &mut self,
        name: &'static str,
        detail: impl Into<String>,
        ioctl: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, RunError> {
        let mut step = Self::start(name, detail.into());
        match Self::issue(&mut step, ioctl).map_err(Into::into) {
            Ok(value) => {
                self.end(step, None)?;
                Ok(value)
            }
            Err(error) => {
                let detail = step.detail.clone();
                self.end(step, Some(error))?;
                Err(RunError::Ioctl {
                    step: name,
                    detail,
                    error,
                })
            }
        }
    }
}

/// Guest memory that a VM refers to.
///
/// Kept for as long as the VM: the fields of [`Td`] are dropped in their order.
struct Slot {
    _shared: Mapping,
    _private: OwnedFd,
}

/// A TD under construction.
///
/// Drop order is declaration order: vCPUs, then the VM, then its memory.
struct Td {
    vcpus: Vec<VcpuFd>,
    vm: VmFd,
    _slots: Vec<Slot>,
}

/// Opens KVM and makes sure that it can make TDs.
pub fn open_kvm() -> Result<Kvm, RunError> {
    let kvm = Kvm::new().map_err(|error| RunError::NoKvm(error.into()))?;
    let types = kvm.check_extension_raw(KVM_CAP_VM_TYPES.into());
    if types <= 0 || types & (1 << KVM_X86_TDX_VM) == 0 {
        return Err(RunError::NoTdx(types));
    }
    Ok(kvm)
}

fn need(present: bool, name: &'static str) -> Result<(), RunError> {
    present.then_some(()).ok_or(RunError::NoCapability(name))
}

/// Makes TDs as the options say; the report says how far it came.
pub fn run(firmware: &Tdvf, options: &Options) -> (Report, Result<(), RunError>) {
    let mut report = Report {
        tdxvm: env!("CARGO_PKG_VERSION"),
        kernel: kernel_release(),
        firmware: options.firmware_name.clone(),
        vcpus: options.vcpus,
        memory: options.memory,
        ..Report::default()
    };
    let served_before = module::served();
    let result = (|| {
        let layout = Layout::new(options.memory, firmware)?;
        let loads = load::plan(firmware, &layout)?;
        report.mrtd_expected = Some(measure::mrtd(&loads));
        for _ in 0..options.repeat {
            build(firmware, &layout, &loads, options, &mut report)?;
            report.runs += 1;
        }
        Ok(())
    })();

    if let (Some(before), Some(mut after)) = (served_before, module::served()) {
        for (name, count) in &mut after {
            *count = count.saturating_sub(before.get(name).copied().unwrap_or(0));
        }
        report.served = Some(after);
    }
    report.ok = result.is_ok();
    report.error = result.as_ref().err().map(|error: &RunError| Failed {
        step: error.step(),
        message: error.to_string(),
        advice: error.advice(),
    });
    (report, result)
}

/// Makes one TD from nothing to finalized, and lets it go again.
fn build(
    firmware: &Tdvf,
    layout: &Layout,
    loads: &[Load<'_>],
    options: &Options,
    report: &mut Report,
) -> Result<(), RunError> {
    report.steps.clear();
    report.sections.clear();
    (report.pages_added, report.pages_measured) = (0, 0);
    (report.mrtd_module, report.mrtd_agrees) = (None, None);

    let mut recorder = Recorder {
        human: options.human,
        steps: Vec::new(),
    };
    let result = build_recorded(firmware, layout, loads, options, report, &mut recorder);
    report.steps = recorder.steps;
    result
}

fn build_recorded(
    firmware: &Tdvf,
    layout: &Layout,
    loads: &[Load<'_>],
    options: &Options,
    report: &mut Report,
    recorder: &mut Recorder,
) -> Result<(), RunError> {
    let kvm = open_kvm()?;
    need(
        kvm.check_extension(Cap::UserMemory2),
        "KVM_CAP_USER_MEMORY2",
    )?;
    let supported = recorder.call("KVM_GET_SUPPORTED_CPUID", "", || tdx::supported_cpuid(&kvm))?;

    let vm = create_vm(&kvm, options, recorder)?;
    let before = LiveTds::read();
    init_td(&vm, supported.as_ref(), options, report, recorder)?;

    let mut td = Td {
        vcpus: Vec::new(),
        vm,
        _slots: Vec::new(),
    };
    let hob = firmware.hob_address().unwrap_or(0);
    for id in 0..options.vcpus {
        let vcpu = create_vcpu(&td.vm, id, hob, supported.as_ref(), report, recorder)?;
        td.vcpus.push(vcpu);
    }
    for (number, (name, range)) in (0..).zip(layout.ranges()) {
        let slot = add_memory(&td.vm, number, name, range, recorder)?;
        td._slots.push(slot);
    }

    let progress = progress_bar(loads, options.human);
    for load in loads {
        load_section(&td.vcpus[0], firmware, load, &progress, report, recorder)?;
    }
    progress.finish_and_clear();

    recorder.call("KVM_TDX_FINALIZE_VM", "", || tdx::finalize_vm(&td.vm))?;
    compare_mrtd(before.as_ref(), report)?;
    if options.enter {
        report.entered = Some(enter(&mut td.vcpus[0], recorder));
    }
    Ok(())
}

/// Creates a VM of the right type and gives it what TDX asks for.
fn create_vm(kvm: &Kvm, options: &Options, recorder: &mut Recorder) -> Result<VmFd, RunError> {
    let vm = recorder.call("KVM_CREATE_VM", "type KVM_X86_TDX_VM", || {
        kvm.create_vm_with_type(KVM_X86_TDX_VM.into())
    })?;
    need(vm.check_extension(Cap::GuestMemfd), "KVM_CAP_GUEST_MEMFD")?;
    let attributes = vm.check_extension_int(Cap::MemoryAttributes);
    need(
        attributes > 0 && attributes as u32 & KVM_MEMORY_ATTRIBUTE_PRIVATE != 0,
        "KVM_CAP_MEMORY_ATTRIBUTES with KVM_MEMORY_ATTRIBUTE_PRIVATE",
    )?;
    let offered = vm.check_extension_int(Cap::MaxVcpus);
    if i64::from(options.vcpus) > i64::from(offered) {
        return Err(RunError::TooManyVcpus {
            asked: options.vcpus,
            offered,
        });
    }

    // TDX needs the local APIC in the kernel, and an I/O APIC cannot be there.
    recorder.call(
        "KVM_ENABLE_CAP",
        format!("KVM_CAP_SPLIT_IRQCHIP, {IOAPIC_PINS} pins"),
        || {
            vm.enable_cap(&kvm_enable_cap {
                cap: KVM_CAP_SPLIT_IRQCHIP,
                args: [IOAPIC_PINS, 0, 0, 0],
                ..Default::default()
            })
        },
    )?;
    Ok(vm)
}

/// Negotiates what the TD can have and initializes it.
fn init_td(
    vm: &VmFd,
    supported: &Cpuid,
    options: &Options,
    report: &mut Report,
    recorder: &mut Recorder,
) -> Result<(), RunError> {
    let caps = recorder.call("KVM_TDX_CAPABILITIES", "", || tdx::capabilities(vm))?;

    let host_khz = recorder.call("KVM_GET_TSC_KHZ", "", || tdx::tsc_khz(vm))?;
    report.tsc_khz = host_khz.clamp(*TSC_KHZ.start(), *TSC_KHZ.end());
    if report.tsc_khz != host_khz {
        let detail = format!(
            "{} kHz, the host's {host_khz} are none a TD can have",
            report.tsc_khz
        );
        recorder.call("KVM_SET_TSC_KHZ", detail, || {
            tdx::set_tsc_khz(vm, report.tsc_khz)
        })?;
    }

    let attributes = caps.supported_attrs & ATTR_SEPT_VE_DISABLE;
    let xfam = cpuid::choose_xfam(caps.supported_xfam, supported.entries());
    let chosen = cpuid::choose_cpuid(caps.cpuid.entries(), supported.entries(), options.vcpus);
    report.attributes = format!("{attributes:#x}");
    report.xfam = format!("{xfam:#x}");
    report.cpuid_configured = chosen.len();
    let detail = format!(
        "attributes {attributes:#x}, XFAM {xfam:#x}, {} CPUID leaves",
        chosen.len()
    );
    let chosen = Cpuid::new(&chosen);
    recorder.call("KVM_TDX_INIT_VM", detail, || {
        tdx::init_vm(vm, attributes, xfam, &chosen)
    })
}

fn create_vcpu(
    vm: &VmFd,
    id: u32,
    hob: u64,
    supported: &Cpuid,
    report: &mut Report,
    recorder: &mut Recorder,
) -> Result<VcpuFd, RunError> {
    let name = format!("vCPU {id}");
    let vcpu = recorder.call("KVM_CREATE_VCPU", &name, || vm.create_vcpu(id.into()))?;
    let seen = recorder.call("KVM_TDX_GET_CPUID", &name, || tdx::get_cpuid(&vcpu))?;
    report.cpuid_seen = seen.entries().len();
    let entries = cpuid::vcpu_cpuid(seen.entries(), supported.entries(), id);
    let detail = format!("{name}, {} leaves", entries.len());
    let table = Cpuid::new(&entries);
    recorder.call("KVM_SET_CPUID2", detail, || tdx::set_cpuid(&vcpu, &table))?;
    let detail = format!("{name}, RCX {hob:#x} (TD HOB)");
    recorder.call("KVM_TDX_INIT_VCPU", detail, || tdx::init_vcpu(&vcpu, hob))?;
    Ok(vcpu)
}

/// Makes a guest_memfd.
pub fn guest_memfd(vm: &VmFd, what: kvm_create_guest_memfd) -> tdx::Result<OwnedFd> {
    let fd = vm.create_guest_memfd(what)?;
    // SAFETY: The kernel has just made this file descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives the VM a range of memory, all of it private.
fn add_memory(
    vm: &VmFd,
    number: u32,
    name: &str,
    range: std::ops::Range<u64>,
    recorder: &mut Recorder,
) -> Result<Slot, RunError> {
    let size = range.end - range.start;
    let place = format!("{name} {:#x}..{:#x}", range.start, range.end);
    let private = recorder.call("KVM_CREATE_GUEST_MEMFD", &place, || {
        guest_memfd(
            vm,
            kvm_create_guest_memfd {
                size,
                ..Default::default()
            },
        )
    })?;
    let shared = Mapping::new(size).map_err(RunError::Memory)?;
    let region = kvm_userspace_memory_region2 {
        slot: number,
        flags: KVM_MEM_GUEST_MEMFD,
        guest_phys_addr: range.start,
        memory_size: size,
        userspace_addr: shared.address(),
        guest_memfd: private.as_raw_fd() as u32,
        ..Default::default()
    };
    let slot = Slot {
        _shared: shared,
        _private: private,
    };
    let detail = format!("slot {number}, {place}");
    recorder.call("KVM_SET_USER_MEMORY_REGION2", detail, || {
        // SAFETY: The shared memory is a mapping of ours that is only unmapped after the VM is
        // gone, and that nothing in this process reads or writes.
        unsafe { vm.set_user_memory_region2(region) }
    })?;
    recorder.call(
        "KVM_SET_MEMORY_ATTRIBUTES",
        format!("private, {place}"),
        || {
            vm.set_memory_attributes(kvm_memory_attributes {
                address: range.start,
                size,
                attributes: KVM_MEMORY_ATTRIBUTE_PRIVATE.into(),
                flags: 0,
            })
        },
    )?;
    Ok(slot)
}

/// Puts one section into the TD.
fn load_section(
    vcpu: &VcpuFd,
    firmware: &Tdvf,
    load: &Load<'_>,
    progress: &ProgressBar,
    report: &mut Report,
    recorder: &mut Recorder,
) -> Result<(), RunError> {
    let source =
        Mapping::with_data(load.pages * PAGE_SIZE, &load.data).map_err(RunError::Memory)?;
    let detail = format!(
        "{} {:#x}..{:#x}, {} pages, {}",
        load.kind,
        load.gpa,
        load.end(),
        load.pages,
        if load.measured {
            "measured"
        } else {
            "not measured"
        },
    );
    progress.set_message(load.kind.name());

    let mut step = Recorder::start("KVM_TDX_INIT_MEM_REGION", detail);
    let (mut done, mut stalls) = (0, 0);
    while done < load.pages {
        let pages = (load.pages - done).min(PAGES_PER_CALL);
        let gpa = load.gpa + done * PAGE_SIZE;
        let outcome = Recorder::issue(&mut step, || {
            tdx::init_mem_region(vcpu, &source, done, pages, gpa, load.measured)
        });
        done += outcome.pages;
        report.pages_added += outcome.pages;
        report.pages_measured += if load.measured { outcome.pages } else { 0 };
        progress.inc(outcome.pages);

        match outcome.stopped {
            None if outcome.pages == pages => {}
            None => {
                progress.finish_and_clear();
                let left = pages - outcome.pages;
                recorder.end(step, None)?;
                return Err(RunError::NotDone { gpa, left });
            }
            Some(error) if matches!(error.errno, libc::EINTR | libc::EAGAIN) => {
                step.resumed += 1;
                stalls = if outcome.pages == 0 { stalls + 1 } else { 0 };
                if stalls > STALLS {
                    progress.finish_and_clear();
                    let _ = recorder.end(step, Some(error));
                    return Err(RunError::Stuck { gpa, error });
                }
            }
            Some(error) => {
                progress.finish_and_clear();
                return recorder.end(step, Some(error));
            }
        }
    }
    let ticks = step.ticks;
    progress.suspend(|| recorder.end(step, None))?;
    report.sections.push(Loaded {
        section: firmware.sections()[load.index].clone(),
        pages: load.pages,
        ticks,
    });
    Ok(())
}

fn progress_bar(loads: &[Load<'_>], human: bool) -> ProgressBar {
    let pages = loads.iter().map(|load| load.pages).sum();
    // The bar itself sees to it that it is drawn on a terminal only.
    let bar = if human {
        ProgressBar::new(pages)
    } else {
        ProgressBar::hidden()
    };
    let style =
        ProgressStyle::with_template("  {msg:<12} [{bar:40}] {pos}/{len} pages, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// Compares the MRTD that was computed with the one in the module, where it can be read.
fn compare_mrtd(before: Option<&LiveTds>, report: &mut Report) -> Result<(), RunError> {
    let (Some(before), Some(after), Some(expected)) =
        (before, LiveTds::read(), report.mrtd_expected)
    else {
        return Ok(());
    };
    let module = after.new_mrtd(before).map_err(RunError::MrtdUnknown)?;
    report.mrtd_module = Some(module);
    report.mrtd_agrees = Some(module == expected);
    if module != expected {
        return Err(RunError::MrtdDiffers { module, expected });
    }
    Ok(())
}

/// Tries to run the TD once and says what came back.
fn enter(vcpu: &mut VcpuFd, recorder: &mut Recorder) -> String {
    let mut step = Recorder::start("KVM_RUN", "vCPU 0, once".to_string());
    let outcome = Recorder::issue(&mut step, || match vcpu.run() {
        Ok(exit) => Ok(format!("{exit:?}")),
        Err(error) => Err(IoctlError::from(error)),
    });
    let (text, error) = match outcome {
        Ok(exit) => (exit, None),
        Err(error) => (error.to_string(), Some(error)),
    };
    // That it fails is worth telling, not worth failing for.
    let _ = recorder.end(step, error);
    text
}

/// Writes the whole report as JSON.
pub fn write_json(report: &Report, file: &mut File) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *file, report)?;
    writeln!(file)
}

fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map(|release| release.trim().to_string())
        .unwrap_or_default()
}

/// Writes a duration the way people read it.
pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
