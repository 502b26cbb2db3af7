// SPDX-License-Identifier: GPL-2.0

//! Runs programs on this kernel.

use std::cell::OnceCell;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_bindings::kvm_enable_cap;
use kvm_bindings::kvm_memory_attributes;
use kvm_bindings::kvm_userspace_memory_region2;
use kvm_bindings::KVM_CAP_SPLIT_IRQCHIP;
use kvm_bindings::KVM_CAP_VM_TYPES;
use kvm_bindings::KVM_MEMORY_ATTRIBUTE_PRIVATE;
use kvm_bindings::KVM_MEM_GUEST_MEMFD;
use kvm_bindings::KVM_X86_TDX_VM;
use kvm_ioctls::Kvm;
use tdx_uapi::cpuid;
use tdx_uapi::Capabilities;
use tdx_uapi::Cmd;
use tdx_uapi::MemRegion;
use tdx_uapi::ATTR_SEPT_VE_DISABLE;
use tdx_uapi::KVM_TDX_CAPABILITIES;
use tdx_uapi::KVM_TDX_GET_CPUID;
use tdx_uapi::KVM_TDX_INIT_VM;

use crate::edges;
use crate::memory;
use crate::memory::Common;
use crate::memory::Memory;
use crate::memory::Placed;
use crate::memory::Use;
use crate::memory::Written;
use crate::memory::PAGE;
use crate::program::Call;
use crate::program::Data;
use crate::program::Hold;
use crate::program::Kind;
use crate::program::On;
use crate::program::Patch;
use crate::program::Place;
use crate::program::Program;
use crate::program::Step;
use crate::program::MAX_VCPUS;
use crate::record::Meanwhile;
use crate::record::Record;
use crate::record::StepRecord;
use crate::requests;
use crate::trace::leaf_name;
use crate::trace::Names;
use crate::trace::Seamcall;
use crate::trace::Tracer;

const EMULATOR: &str = "/sys/kernel/debug/tdx_emulator";
const TDX_RUST: &str = "/sys/module/kvm_intel/parameters/tdx_rust";

/// Where slot 0 begins, and its size.
pub const SLOT_GPA: u64 = 0x10_0000;
pub const SLOT_PAGES: u64 = 4;

/// Routing entries that are left to a user-space I/O APIC.
const IOAPIC_PINS: u64 = 24;

/// How long a SEAMCALL that is to be held holds its locks.
const HOLD_US: u32 = 10_000;

/// How long a call has to sleep until it is taken to wait for the one that is held. Other waits, for
/// example for readers of a memory slot, are over by then.
const BLOCKED_AFTER: Duration = Duration::from_millis(5);

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who serves a TDX ioctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    C,
    Rust,
}

/// What an ordinary TD on this machine is given.
#[derive(Clone, Debug)]
pub struct Offer {
    pub attributes: u64,
    pub xfam: u64,
    /// What KVM_TDX_CAPABILITIES says.
    pub configurable: Vec<kvm_cpuid_entry2>,
    /// What KVM_TDX_INIT_VM takes.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// What KVM_SET_CPUID2 takes.
    pub supported: Vec<kvm_cpuid_entry2>,
    /// All attributes and XFAM bits that KVM_TDX_CAPABILITIES offers.
    pub supported_attributes: u64,
    pub supported_xfam: u64,
    /// How many entries KVM_TDX_GET_CPUID has for a TD.
    pub td_cpuid: usize,
    /// The numbers at their edges that follow from all that, once they were asked for.
    pub edges: OnceCell<edges::Table>,
}

fn entry_bytes(entries: &[kvm_cpuid_entry2]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + entries.len() * 40);
    bytes.extend((entries.len() as u32).to_le_bytes());
    bytes.extend([0; 4]);
    for entry in entries {
        let words = [
            entry.function,
            entry.index,
            entry.flags,
            entry.eax,
            entry.ebx,
            entry.ecx,
            entry.edx,
        ];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend([0; 12]);
    }
    bytes
}

fn patch(bytes: &mut Vec<u8>, patch: &Patch) {
    let (start, width) = (usize::from(patch.offset), usize::from(patch.width).min(8));
    if bytes.len() < start + width {
        bytes.resize(start + width, 0);
    }
    bytes[start..start + width].copy_from_slice(&patch.value.to_le_bytes()[..width]);
}

impl Offer {
    /// The numbers at their edges that a command takes.
    pub fn edges(&self, command: u32) -> Option<&edges::Sorted> {
        self.edges
            .get_or_init(|| edges::Table::new(self))
            .of(command)
    }

    /// The bytes of a structure. `gmem` is the guest_memfd, if there is one.
    pub fn structure(&self, kind: Kind, gmem: Option<i32>) -> Vec<u8> {
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let put = |bytes: &mut Vec<u8>, offset: usize, value: u64, width: u8| {
            patch(
                bytes,
                &Patch {
                    offset: offset as u16,
                    width,
                    value,
                },
            );
        };
        let room = tdx_uapi::MAX_CPUID_ENTRIES as u64;
        let slot_size = SLOT_PAGES * PAGE;
        match kind {
            Kind::Capabilities => {
                let mut bytes = vec![0; offset_of!(Capabilities, cpuid) + 8];
                put(&mut bytes, offset_of!(Capabilities, cpuid), room, 4);
                bytes
            }
            Kind::InitVm => {
                let mut bytes: Vec<u8> = words(&[self.attributes, self.xfam]);
                bytes.resize(offset_of!(tdx_uapi::InitVm, cpuid), 0);
                bytes.extend(entry_bytes(&self.cpuid));
                bytes
            }
            Kind::MemRegion => {
                const _: () = assert!(offset_of!(MemRegion, nr_pages) == 16);
                words(&[memory::SOURCE, SLOT_GPA, 1])
            }
            Kind::Cpuid => words(&[room]),
            Kind::SupportedCpuid => entry_bytes(&self.supported),
            Kind::Slot => {
                type Slot = kvm_userspace_memory_region2;
                let mut bytes = vec![0; size_of::<Slot>()];
                let flags = gmem.map_or(0, |_| KVM_MEM_GUEST_MEMFD);
                put(&mut bytes, offset_of!(Slot, flags), flags.into(), 4);
                put(&mut bytes, offset_of!(Slot, guest_phys_addr), SLOT_GPA, 8);
                put(&mut bytes, offset_of!(Slot, memory_size), slot_size, 8);
                put(
                    &mut bytes,
                    offset_of!(Slot, userspace_addr),
                    memory::SHARED,
                    8,
                );
                put(
                    &mut bytes,
                    offset_of!(Slot, guest_memfd),
                    gmem.unwrap_or(-1) as u64,
                    4,
                );
                bytes
            }
            Kind::Attributes => {
                const _: () = assert!(offset_of!(kvm_memory_attributes, attributes) == 16);
                words(&[SLOT_GPA, slot_size, KVM_MEMORY_ATTRIBUTE_PRIVATE.into(), 0])
            }
            Kind::SplitIrqchip => {
                type Cap = kvm_enable_cap;
                let mut bytes = vec![0; size_of::<Cap>()];
                put(
                    &mut bytes,
                    offset_of!(Cap, cap),
                    KVM_CAP_SPLIT_IRQCHIP.into(),
                    4,
                );
                put(&mut bytes, offset_of!(Cap, args), IOAPIC_PINS, 8);
                bytes
            }
            Kind::PreFault => {
                let mut bytes: Vec<u8> = words(&[SLOT_GPA, slot_size]);
                bytes.resize(64, 0);
                bytes
            }
            // One register, IA32_APIC_BASE.
            Kind::Msrs => words(&[1, 0x1b, 0]),
            Kind::Zeros(size) => vec![0; size.into()],
        }
    }
}

/// A system call with its arguments.
#[derive(Clone, Copy, Debug)]
enum Raw {
    Ioctl {
        fd: i32,
        request: u64,
        argument: u64,
    },
    PunchHole {
        fd: i32,
        offset: u64,
        size: u64,
    },
    Close {
        fd: i32,
    },
    Nothing,
}

/// What a system call returned.
#[derive(Clone, Copy, Debug)]
struct Returned {
    value: i64,
    errno: i32,
}

impl Raw {
    /// # Safety
    ///
    /// The memory that the call can make the kernel write to must be of no concern to anybody: a
    /// place of [`Memory`], or no memory at all. The descriptor must be one of the program's.
    unsafe fn make(self) -> Returned {
        // SAFETY: By the function's safety requirements.
        let value = unsafe {
            match self {
                Self::Ioctl {
                    fd,
                    request: requests::RUN,
                    argument,
                } => Alarm::ends(|| libc::ioctl(fd, requests::RUN as _, argument)).into(),
                Self::Ioctl {
                    fd,
                    request,
                    argument,
                } => libc::ioctl(fd, request as _, argument).into(),
                Self::PunchHole { fd, offset, size } => libc::fallocate(
                    fd,
                    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    offset as i64,
                    size as i64,
                )
                .into(),
                Self::Close { fd } => libc::close(fd).into(),
                Self::Nothing => 0,
            }
        };
        let errno = match value {
            -1 => io::Error::last_os_error().raw_os_error().unwrap_or(0),
            _ => 0,
        };
        Returned { value, errno }
    }
}

/// A signal for one thread, some time later.
///
/// KVM_RUN of a vCPU that nobody has started waits for ever, or for a signal.
struct Alarm(libc::timer_t);

impl Alarm {
    const AFTER_NS: i64 = 500_000_000;

    fn new() -> Option<Self> {
        extern "C" fn nothing(_: libc::c_int) {}

        // SAFETY: Zeros are no flags and an empty mask. The handler does nothing.
        let installed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut())
        };
        let mut timer: libc::timer_t = std::ptr::null_mut();
        // SAFETY: Zeros are a valid event, of which the three fields that count are set; the kernel
        // writes a number of its own to `timer`.
        let created = unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = libc::SIGALRM;
            event.sigev_notify_thread_id = libc::gettid();
            libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer)
        };
        (installed == 0 && created == 0).then_some(Self(timer))
    }

    fn set(&self, ns: i64) {
        // SAFETY: Zeros are no time.
        let mut time: libc::itimerspec = unsafe { std::mem::zeroed() };
        time.it_value.tv_nsec = ns;
        // SAFETY: The timer is one of this process, and `time` is read only.
        unsafe { libc::timer_settime(self.0, 0, &time, std::ptr::null_mut()) };
    }

    /// Makes a call that a signal ends if it does not end by itself.
    fn ends<T>(call: impl FnOnce() -> T) -> T {
        thread_local! {
            static ALARM: Option<Alarm> = Alarm::new();
        }
        ALARM.with(|alarm| {
            if let Some(alarm) = alarm {
                alarm.set(Self::AFTER_NS);
            }
            let result = call();
            // The errno is that of the call.
            let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
            if let Some(alarm) = alarm {
                alarm.set(0);
            }
            // SAFETY: This is where the thread's errno is.
            unsafe { *libc::__errno_location() = errno };
            result
        })
    }
}

fn pin(cpu: usize) -> Result<()> {
    // SAFETY: A zeroed set is an empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: The set is ours, and `cpu` is one of a few.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: The set has the size that is told.
    if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("no processor {cpu}"));
    }
    Ok(())
}

/// Lets this thread, and those that it starts, run until they wait, if it may.
///
/// Else each grace period of SRCU wakes a kernel thread that takes the processor from the call which
/// has asked for it. That call is a reader of SRCU itself just then, and the kernel thread looks
/// again and again whether it still is.
fn run_until_waiting() {
    // SAFETY: Zeros are a valid parameter, of which the kernel reads the priority only.
    unsafe {
        let mut param: libc::sched_param = std::mem::zeroed();
        param.sched_priority = 1;
        libc::sched_setscheduler(0, libc::SCHED_FIFO, &param);
    }
}

/// A thread that makes calls.
#[derive(Debug)]
struct Worker {
    calls: mpsc::Sender<Raw>,
    results: mpsc::Receiver<Returned>,
    /// Where /proc tells what it is doing.
    proc: String,
}

impl Worker {
    fn start(cpu: usize) -> Result<Self> {
        let (calls, to_make) = mpsc::channel::<Raw>();
        let (made, results) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            // SAFETY: Takes nothing and only gives a number.
            let tid = unsafe { libc::gettid() };
            if ready.send(pin(cpu).map(|()| tid)).is_err() {
                return;
            }
            for call in to_make {
                // SAFETY: `Kernel` only hands over calls of programs, whose descriptors are its
                // own and whose memory is that of a `Memory`, or not there.
                if made.send(unsafe { call.make() }).is_err() {
                    return;
                }
            }
        });
        let tid = is_ready.recv().context("a thread ended at once")??;
        Ok(Self {
            calls,
            results,
            proc: format!("/proc/self/task/{tid}"),
        })
    }

    /// Whether the thread sleeps for a lock.
    ///
    /// A wait for a grace period of RCU is none: it ends by itself.
    fn is_blocked(&self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("{}/stat", self.proc)) else {
            return false;
        };
        let state = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.trim().chars().next());
        if state != Some('D') {
            return false;
        }
        let wchan = fs::read_to_string(format!("{}/wchan", self.proc)).unwrap_or_default();
        !["synchronize", "rcu", "wait_for_completion", "flush"]
            .iter()
            .any(|transient| wchan.contains(transient))
    }
}

/// Descriptors of a program that runs.
#[derive(Debug, Default)]
struct Fds {
    vm: Option<i32>,
    gmem: Option<i32>,
    vcpus: Vec<Option<i32>>,
}

impl Fds {
    fn get(&self, on: On) -> Option<i32> {
        match on {
            On::Vm => self.vm,
            On::Gmem => self.gmem,
            On::Vcpu(number) => self.vcpus.get(usize::from(number)).copied().flatten(),
        }
    }

    fn take(&mut self, on: On) -> Option<i32> {
        match on {
            On::Vm => self.vm.take(),
            On::Gmem => self.gmem.take(),
            On::Vcpu(number) => self.vcpus.get_mut(usize::from(number))?.take(),
        }
    }
}

/// A step that is about to be made, or was.
struct Prepared {
    raw: Raw,
    data: Option<Placed>,
    command: Option<Placed>,
}

/// Where an injection is switched on.
struct Injection {
    hold_us: File,
    probability: File,
    times: File,
    injected: PathBuf,
}

/// Writes to a file of the kernel that has one value and no position.
fn set(mut file: &File, text: &str) -> Result<()> {
    file.write_all(text.as_bytes())
        .with_context(|| format!("cannot write {text:?}"))
}

fn read_at_start(file: &File) -> Result<String> {
    let mut text = [0; 4096];
    let mut len = 0;
    loop {
        match file.read_at(&mut text[len..], len as u64)? {
            0 => break,
            read => len += read,
        }
    }
    Ok(String::from_utf8_lossy(&text[..len]).into_owned())
}

fn open(path: impl AsRef<Path>, write: bool) -> Result<File> {
    let path = path.as_ref();
    OpenOptions::new()
        .read(!write)
        .write(write)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

impl Injection {
    fn of(leaf: &str) -> Result<Self> {
        let folder = Path::new(EMULATOR).join("inject").join(leaf);
        Ok(Self {
            hold_us: open(folder.join("hold_us"), true)?,
            probability: open(folder.join("probability"), true)?,
            times: open(folder.join("times"), true)?,
            injected: folder.join("injected"),
        })
    }

    /// Lets the next call of the leaf hold its locks.
    fn arm(&self) -> Result<u64> {
        set(&self.times, "1")?;
        set(&self.hold_us, &HOLD_US.to_string())?;
        set(&self.probability, "100")?;
        self.count()
    }

    fn disarm(&self) -> Result<()> {
        set(&self.probability, "0")?;
        set(&self.hold_us, "0")
    }

    fn count(&self) -> Result<u64> {
        Ok(fs::read_to_string(&self.injected)?.trim().parse()?)
    }
}

/// Makes TDH.MNG.INIT refuse XFAM: an error that KVM hands on, and that is only there when wanted.
pub struct Refusal {
    status: File,
    probability: File,
    times: File,
}

impl Refusal {
    /// TDX_OPERAND_INVALID, XFAM.
    const STATUS: &str = "0xc000010000000041";

    pub fn new() -> Result<Self> {
        let folder = Path::new(EMULATOR).join("inject/MNG.INIT");
        let refusal = Self {
            status: open(folder.join("status"), true)?,
            probability: open(folder.join("probability"), true)?,
            times: open(folder.join("times"), true)?,
        };
        set(&refusal.times, "-1")?;
        Ok(refusal)
    }

    pub fn switch(&self, on: bool) -> Result<()> {
        set(&self.status, if on { Self::STATUS } else { "0" })?;
        set(&self.probability, if on { "100" } else { "0" })
    }
}

/// The SEAMCALLs in which a step can be held.
pub const HOLDABLE: &[u16] = &[1, 2, 3, 4, 9, 10, 11, 16, 17, 21, 22, 43];

/// What an emulated TDX module shows and does, and a real one does not.
struct Emulator {
    tracer: Tracer,
    injections: Vec<(u16, Rc<Injection>)>,
    tds: File,
    accounting: File,
    accounting_before: String,
}

impl Emulator {
    /// Opens the files of the module, if it is one that has them.
    fn open() -> Result<Option<Self>> {
        if !Path::new(EMULATOR).is_dir() {
            return Ok(None);
        }
        let mut injections = Vec::new();
        for leaf in HOLDABLE {
            injections.push((*leaf, Rc::new(Injection::of(&leaf_name(*leaf))?)));
        }
        let accounting = open(Path::new(EMULATOR).join("accounting"), false)?;
        Ok(Some(Self {
            tracer: Tracer::start(2048)?,
            injections,
            tds: open(Path::new(EMULATOR).join("tds"), false)?,
            accounting_before: read_at_start(&accounting)?,
            accounting,
        }))
    }

    /// What the module shows of the only TD, without what differs each time.
    fn describe_td(&self) -> Result<String> {
        let text = read_at_start(&self.tds)?;
        let fields: Vec<&str> = text
            .split_whitespace()
            .filter(|field| !field.starts_with("tdr=") && !field.starts_with("hkid="))
            .collect();
        Ok(fields.join(" "))
    }

    /// What changed in the module's accounting since the last time.
    fn left(&mut self) -> Result<Vec<String>> {
        let now = read_at_start(&self.accounting)?;
        let before = std::mem::replace(&mut self.accounting_before, now);
        let lines = self.accounting_before.lines().zip(before.lines());
        Ok(lines
            .filter(|(now, before)| now != before)
            .map(|(now, before)| format!("{now} (was {before})"))
            .collect())
    }
}

/// This kernel, its KVM and its TDX module.
pub struct Kernel {
    kvm: Kvm,
    pub offer: Offer,
    common: Common,
    memories: [Memory; 2],
    emulator: Option<Emulator>,
    workers: Option<[Worker; 2]>,
    switch: File,
    served: Option<Server>,
    group: Option<Group>,
    _namesake: OwnedFd,
    /// Ticks that the last run took: to create the VM, each step, to destroy it, and to see what came
    /// of it. Steps that overlap count as one.
    pub spent: Vec<u64>,
}

/// Reads the time stamp counter, which is also the clock of the trace.
fn ticks() -> u64 {
    // SAFETY: Every CPU that this is compiled for has RDTSC, and Linux does not forbid it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

impl Kernel {
    /// Opens what programs need.
    pub fn open() -> Result<Self> {
        pin(0)?;
        run_until_waiting();
        let kvm = Kvm::new().context("cannot open /dev/kvm")?;
        let types = kvm.check_extension_raw(KVM_CAP_VM_TYPES.into());
        if types <= 0 || types & (1 << KVM_X86_TDX_VM) == 0 {
            bail!("KVM cannot make TDs: it offers VM types {types:#x}");
        }
        let offer = Self::ask_offer(&kvm)?;
        let common = Common::new()?;
        let memories = [Memory::new(0)?, Memory::new(1)?];
        let emulator = Emulator::open()?;
        let switch = open(TDX_RUST, true)?;
        let group = Group::enter();
        let mut kernel = Self {
            _namesake: namesake(&kvm)?,
            kvm,
            offer,
            common,
            memories,
            emulator,
            workers: None,
            switch,
            served: None,
            group,
            spent: Vec::new(),
        };
        kernel.offer.td_cpuid = kernel.ask_td_cpuid()?;
        Ok(kernel)
    }

    /// Finds out how many entries KVM_TDX_GET_CPUID has for an ordinary TD.
    fn ask_td_cpuid(&mut self) -> Result<usize> {
        let vcpu = On::Vcpu(0);
        let calls = [
            Call::kvm(On::Vm, requests::ENABLE_CAP, Kind::SplitIrqchip),
            Call::tdx(On::Vm, KVM_TDX_INIT_VM, Data::of(Kind::InitVm)),
            Call::CreateVcpu { id: 0 },
            Call::tdx(vcpu, KVM_TDX_GET_CPUID, Data::of(Kind::Cpuid)),
        ];
        let program = Program {
            steps: calls.into_iter().map(Step::new).collect(),
        };
        let record = self.run(&program, &|_| Server::C)?;
        let asked = record.steps.last().filter(|step| step.errno == 0);
        let written = asked.map_or(&[][..], |step| &step.written[..]);
        // Its first bytes are `nent`, as far as it differs from the room that there was.
        let mut nent = (tdx_uapi::MAX_CPUID_ENTRIES as u32).to_le_bytes();
        for Written { offset, bytes } in written {
            for (at, byte) in (*offset..).zip(bytes) {
                if let Some(old) = usize::try_from(at).ok().and_then(|at| nent.get_mut(at)) {
                    *old = *byte;
                }
            }
        }
        if written.is_empty() {
            bail!("KVM does not tell the CPUID of an ordinary TD");
        }
        Ok(u32::from_le_bytes(nent) as usize)
    }

    /// Says what cannot be compared here.
    pub fn blind_to(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if self.emulator.is_none() {
            missing
                .push("SEAMCALLs, MRTD and the module's pages: the TDX module is no emulated one");
        }
        if self.group.is_none() {
            missing.push("charges for TDs: there is no misc cgroup that counts them");
        }
        missing
    }

    /// Finds out what a TD can be given.
    fn ask_offer(kvm: &Kvm) -> Result<Offer> {
        let vm = kvm
            .create_vm_with_type(KVM_X86_TDX_VM.into())
            .context("KVM_CREATE_VM")?;
        let supported = kvm
            .get_supported_cpuid(tdx_uapi::MAX_CPUID_ENTRIES)
            .context("KVM_GET_SUPPORTED_CPUID")?;
        let supported = supported.as_slice().to_vec();
        let mut caps = Capabilities::with_room();
        let mut cmd = Cmd {
            id: KVM_TDX_CAPABILITIES,
            data: &raw mut *caps as u64,
            ..Cmd::default()
        };
        // SAFETY: The kernel reads and writes a `struct kvm_tdx_cmd`, and writes to `caps`, which
        // has room for all entries.
        let result = unsafe {
            libc::ioctl(
                vm.as_raw_fd(),
                requests::MEMORY_ENCRYPT_OP as _,
                &raw mut cmd,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error()).context("KVM_TDX_CAPABILITIES");
        }
        let configurable = caps.cpuid.entries().to_vec();
        Ok(Offer {
            attributes: caps.supported_attrs & ATTR_SEPT_VE_DISABLE,
            xfam: cpuid::choose_xfam(caps.supported_xfam, &supported),
            cpuid: cpuid::choose_cpuid(&configurable, &supported, MAX_VCPUS.into()),
            supported_attributes: caps.supported_attrs,
            supported_xfam: caps.supported_xfam,
            configurable,
            supported,
            td_cpuid: 0,
            edges: OnceCell::new(),
        })
    }

    /// Chooses who serves the next call.
    fn serve(&mut self, server: Server) -> Result<()> {
        if self.served != Some(server) {
            let text = match server {
                Server::C => "N",
                Server::Rust => "Y",
            };
            self.switch
                .write_all_at(text.as_bytes(), 0)
                .context(TDX_RUST)?;
            self.served = Some(server);
        }
        Ok(())
    }

    fn place(&mut self, thread: u8, data: &Data, gmem: Option<i32>) -> (u64, Option<Placed>) {
        match data {
            Data::Value(value) => (*value, None),
            Data::Struct { kind, patches, at } => {
                let mut bytes = self.offer.structure(*kind, gmem);
                for change in patches {
                    patch(&mut bytes, change);
                }
                let placed = self.memory(thread).put(Use::Data, *at, &bytes);
                (placed.address, Some(placed))
            }
        }
    }

    fn memory(&mut self, thread: u8) -> &mut Memory {
        &mut self.memories[usize::from(thread & 1)]
    }

    /// Makes a system call of a program's call.
    fn prepare(&mut self, thread: u8, call: &Call, fds: &mut Fds) -> Prepared {
        let mut prepared = Prepared {
            raw: Raw::Nothing,
            data: None,
            command: None,
        };
        let none = -1;
        let vm = fds.vm.unwrap_or(none);
        prepared.raw = match call {
            Call::Tdx {
                on,
                id,
                flags,
                hw_error,
                at,
                data,
            } => {
                let (data, placed) = self.place(thread, data, fds.gmem);
                let mut bytes = Vec::with_capacity(size_of::<Cmd>());
                bytes.extend(id.to_le_bytes());
                bytes.extend(flags.to_le_bytes());
                bytes.extend(data.to_le_bytes());
                bytes.extend(hw_error.to_le_bytes());
                let at = match at {
                    Place::Held(_) => Place::Normal,
                    at => *at,
                };
                let command = self.memory(thread).put(Use::Command, at, &bytes);
                prepared.data = placed;
                let raw = Raw::Ioctl {
                    fd: fds.get(*on).unwrap_or(none),
                    request: requests::MEMORY_ENCRYPT_OP,
                    argument: command.address,
                };
                prepared.command = Some(command);
                raw
            }
            Call::Kvm { on, request, data } => {
                let (argument, placed) = self.place(thread, data, fds.gmem);
                prepared.data = placed;
                Raw::Ioctl {
                    fd: fds.get(*on).unwrap_or(none),
                    request: request.number(),
                    argument,
                }
            }
            Call::CreateVcpu { id } => Raw::Ioctl {
                fd: vm,
                request: requests::CREATE_VCPU,
                argument: *id,
            },
            Call::CreateGmem { size, flags } => {
                let mut bytes = size.to_le_bytes().to_vec();
                bytes.extend(flags.to_le_bytes());
                bytes.resize(64, 0);
                let placed = self.memory(thread).put(Use::Data, Place::Normal, &bytes);
                let raw = Raw::Ioctl {
                    fd: vm,
                    request: requests::CREATE_GUEST_MEMFD,
                    argument: placed.address,
                };
                prepared.data = Some(placed);
                raw
            }
            Call::PunchHole { offset, size } => Raw::PunchHole {
                fd: fds.gmem.unwrap_or(none),
                offset: *offset,
                size: *size,
            },
            Call::Run { vcpu } => Raw::Ioctl {
                fd: fds.get(On::Vcpu(*vcpu)).unwrap_or(none),
                request: requests::RUN,
                argument: 0,
            },
            Call::Close(on) => match fds.take(*on) {
                Some(fd) => Raw::Close { fd },
                None => Raw::Nothing,
            },
            Call::Limit { tds } => {
                if let Some(group) = &mut self.group {
                    group.limit(Some(*tds));
                }
                Raw::Nothing
            }
        };
        prepared
    }

    /// Looks at what a call led to.
    fn look(
        &mut self,
        thread: u8,
        call: &Call,
        mut prepared: Prepared,
        returned: Returned,
        fds: &mut Fds,
    ) -> Result<StepRecord> {
        let mut record = StepRecord {
            value: returned.value,
            errno: returned.errno,
            ..StepRecord::default()
        };
        if let Some(data) = &mut prepared.data {
            record.written = self.memory(thread).written(data);
        }
        if let Some(command) = &mut prepared.command {
            record.command_written = self.memory(thread).written(command);
        }
        match call {
            Call::CreateVcpu { .. } if returned.errno == 0 => {
                fds.vcpus.push(Some(returned.value as i32));
                record.value = 0;
            }
            Call::CreateGmem { .. } if returned.errno == 0 => {
                let fd = returned.value as i32;
                if let Some(old) = fds.gmem.replace(fd) {
                    close(old);
                }
                record.value = 0;
            }
            Call::Run { vcpu } if returned.errno == 0 => {
                let mut page = vec![0; 64];
                let fd = fds.get(On::Vcpu(*vcpu)).unwrap_or(-1);
                memory::read_shared_page(fd, &mut page).context("the page of a vCPU")?;
                record.written.push(Written {
                    offset: 0,
                    bytes: page,
                });
            }
            _ => {}
        }
        Ok(record)
    }

    /// Runs a program; `server` says who serves which step.
    pub fn run(&mut self, program: &Program, server: &dyn Fn(usize) -> Server) -> Result<Record> {
        let start = ticks();
        let mut fds = Fds::default();
        let result = self.run_steps(program, server, &mut fds);
        // Whatever went wrong, nothing stays.
        let began = ticks();
        let td = match &self.emulator {
            Some(emulator) => emulator.describe_td()?,
            None => String::new(),
        };
        for number in 0..fds.vcpus.len() {
            close_if(fds.take(On::Vcpu(number as u8)));
        }
        close_if(fds.gmem.take());
        close_if(fds.vm.take());
        let closed = ticks();
        let elsewhere = self.common.written();
        let (mut record, times) = result?;
        record.td = td;
        record.elsewhere = elsewhere;
        self.sort_seamcalls(program, &mut record, &times, began)?;
        record.left = self.left()?;
        let mut last = start;
        self.spent = times
            .iter()
            .filter(|time| **time != u64::MAX)
            .chain([&began, &closed, &ticks()])
            .map(|time| time - std::mem::replace(&mut last, *time))
            .collect();
        Ok(record)
    }

    fn run_steps(
        &mut self,
        program: &Program,
        server: &dyn Fn(usize) -> Server,
        fds: &mut Fds,
    ) -> Result<(Record, Vec<u64>)> {
        let mut record = Record::default();
        let mut times = Vec::new();
        let fd = create_vm(&self.kvm, KVM_X86_TDX_VM.into())?;
        fds.vm = Some(fd);

        let threaded = program.is_threaded()
            || program.steps.iter().any(|step| {
                matches!(
                    step.call.data(),
                    Some(Data::Struct {
                        at: Place::Held(_),
                        ..
                    })
                )
            });
        let mut index = 0;
        while let Some(step) = program.steps.get(index) {
            times.push(ticks());
            self.serve(server(index))?;
            if !threaded {
                let prepared = self.prepare(0, &step.call, fds);
                // SAFETY: The descriptors are this program's, and `prepare()` puts into calls only
                // addresses of a `Memory` or of the `Common`, and what nothing is mapped at.
                let returned = unsafe { prepared.raw.make() };
                record
                    .steps
                    .push(self.look(0, &step.call, prepared, returned, fds)?);
                index += 1;
                continue;
            }
            let next = program.holds_next(index).then(|| server(index + 1));
            let overlapping = next.is_some();
            self.run_threaded(program, index, next, fds, &mut record)?;
            if overlapping {
                times.push(u64::MAX);
            }
            index += if overlapping { 2 } else { 1 };
        }
        Ok((record, times))
    }

    /// Makes step `index` in its thread, and the next one, too, if that is to happen meanwhile.
    fn run_threaded(
        &mut self,
        program: &Program,
        index: usize,
        next: Option<Server>,
        fds: &mut Fds,
        record: &mut Record,
    ) -> Result<()> {
        let workers = match self.workers.take() {
            Some(workers) => workers,
            None => [Worker::start(0)?, Worker::start(1)?],
        };
        let step = &program.steps[index];
        let hold = step.hold.filter(|_| next.is_some());
        let mut first = self.prepare(step.thread, &step.call, fds);
        let injection = match hold {
            Some(Hold::Seamcall(leaf)) => {
                // Who looks on must not be on the processor that is held.
                pin(usize::from(1 - (step.thread & 1)))?;
                let injections = self.emulator.iter().flat_map(|module| &module.injections);
                injections
                    .filter(|(number, _)| *number == leaf)
                    .map(|(_, injection)| Rc::clone(injection))
                    .next()
            }
            _ => None,
        };
        let armed = injection.as_deref().map(Injection::arm).transpose()?;
        let worker = &workers[usize::from(step.thread & 1)];
        worker.calls.send(first.raw).context("a thread is gone")?;

        // Until it is held, or has ended.
        let began = Instant::now();
        let mut returned = None;
        let mut is_held = false;
        while returned.is_none() && !is_held {
            returned = worker.results.try_recv().ok();
            if let (Some(injection), Some(before)) = (&injection, armed) {
                is_held = injection.count()? != before;
            } else if self.memories[usize::from(step.thread & 1)].is_waited_for() {
                is_held = hold == Some(Hold::Memory);
                if !is_held {
                    if let Some(data) = &mut first.data {
                        self.memories[usize::from(step.thread & 1)].open(data);
                    }
                }
            }
            patience(began, "a call that should be held")?;
        }

        let mut second = None;
        let mut meanwhile = Meanwhile::NotHeld;
        if let Some(server) = next {
            let other = &program.steps[index + 1];
            self.serve(server)?;
            let mut prepared = self.prepare(other.thread, &other.call, fds);
            let other_worker = &workers[usize::from(other.thread & 1)];
            other_worker
                .calls
                .send(prepared.raw)
                .context("a thread is gone")?;
            let mut other_returned = None;
            let mut blocked_since = None;
            loop {
                if other_returned.is_none() {
                    other_returned = other_worker.results.try_recv().ok();
                }
                if self.memories[usize::from(other.thread & 1)].is_waited_for() {
                    if let Some(data) = &mut prepared.data {
                        self.memories[usize::from(other.thread & 1)].open(data);
                    }
                }
                if is_held && hold == Some(Hold::Memory) && meanwhile == Meanwhile::NotHeld {
                    if other_returned.is_some() {
                        meanwhile = match &other.call {
                            Call::Tdx { id, on, .. }
                                if *id == KVM_TDX_GET_CPUID && *on != On::Vm =>
                            {
                                Meanwhile::Passed
                            }
                            _ => Meanwhile::Ended,
                        };
                    } else if other_worker.is_blocked() {
                        let since = blocked_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= BLOCKED_AFTER {
                            meanwhile = Meanwhile::Blocked;
                        }
                    } else {
                        blocked_since = None;
                    }
                    if meanwhile != Meanwhile::NotHeld {
                        if let Some(data) = &mut first.data {
                            self.memories[usize::from(step.thread & 1)].open(data);
                        }
                    }
                }
                if returned.is_none() {
                    returned = worker.results.try_recv().ok();
                }
                if returned.is_some() && other_returned.is_some() {
                    break;
                }
                patience(began, "two calls at once")?;
            }
            if is_held && hold != Some(Hold::Memory) {
                meanwhile = Meanwhile::AtOnce;
            }
            second = Some((prepared, other_returned));
        }
        if let Some(injection) = injection {
            injection.disarm()?;
            pin(0)?;
        }
        self.workers = Some(workers);

        let returned = returned.context("a call without a result")?;
        let mut first = self.look(step.thread, &step.call, first, returned, fds)?;
        first.held = next.map(|_| meanwhile);
        record.steps.push(first);
        if let Some((prepared, returned)) = second {
            let other = &program.steps[index + 1];
            let returned = returned.context("a call without a result")?;
            record
                .steps
                .push(self.look(other.thread, &other.call, prepared, returned, fds)?);
        }
        Ok(())
    }

    /// Gives each step the SEAMCALLs that were made in its time.
    fn sort_seamcalls(
        &mut self,
        program: &Program,
        record: &mut Record,
        times: &[u64],
        began: u64,
    ) -> Result<()> {
        let Some(emulator) = &mut self.emulator else {
            return Ok(());
        };
        let seamcalls = emulator.tracer.take()?;
        let mut names = Names::default();
        let mut rest = &seamcalls[..];
        for index in 0..record.steps.len() {
            if program.is_overlapping(index) {
                continue;
            }
            let end = times[index + 1..]
                .iter()
                .copied()
                .find(|time| *time != u64::MAX)
                .unwrap_or(began);
            let count = rest
                .iter()
                .take_while(|seamcall| seamcall.time < end)
                .count();
            let (now, later) = rest.split_at(count);
            let mut now: Vec<&Seamcall> = now.iter().collect();
            if program.holds_next(index) {
                now.sort_by_key(|seamcall| seamcall.cpu);
            }
            record.steps[index].seamcalls = now.into_iter().map(|s| names.name(s)).collect();
            rest = later;
        }
        record.teardown = rest.iter().map(|seamcall| names.name(seamcall)).collect();
        Ok(())
    }

    /// What a program left behind: what changed in the module's accounting, and charges.
    fn left(&mut self) -> Result<String> {
        let mut left = match &mut self.emulator {
            Some(emulator) => emulator.left()?,
            None => Vec::new(),
        };
        if let Some(group) = &mut self.group {
            let charge = group.charge()?;
            if charge != 0 {
                left.push(format!("{charge} {CHARGES}"));
                // Nobody else is to find it.
                self.group = Group::enter();
            } else {
                group.limit(None);
            }
        }
        Ok(left.join(", "))
    }
}

/// What [`Record::left`] calls charges of the control group.
pub const CHARGES: &str = "charges for TDs";

/// The control group of this process, which counts its TDs.
struct Group {
    current: File,
    max: File,
    limited: bool,
}

impl Group {
    /// Moves this process to a new group, if there can be one.
    fn enter() -> Option<Self> {
        for number in 0.. {
            let path = PathBuf::from(format!("/sys/fs/cgroup/conformance-{number}"));
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(_) => return None,
            }
            fs::write(path.join("cgroup.procs"), "0").ok()?;
            return Some(Self {
                current: open(path.join("misc.current"), false).ok()?,
                max: open(path.join("misc.max"), true).ok()?,
                limited: false,
            });
        }
        None
    }

    /// Sets how many TDs there may be.
    fn limit(&mut self, tds: Option<u64>) {
        let text = match tds {
            Some(tds) => format!("tdx {tds}"),
            None if self.limited => "tdx max".to_string(),
            None => return,
        };
        self.limited = tds.is_some();
        // A number that is not accepted limits nothing, for C and for Rust.
        let _ = self.max.write_all_at(text.as_bytes(), 0);
    }

    /// How many TDs are charged for. A group that was given back too many has less than none.
    fn charge(&self) -> Result<i64> {
        let text = read_at_start(&self.current)?;
        let count = text.lines().find_map(|line| line.strip_prefix("tdx "));
        Ok(count
            .and_then(|count| count.parse::<u64>().ok())
            .unwrap_or(0) as i64)
    }
}

fn create_vm(kvm: &Kvm, vm_type: u64) -> Result<i32> {
    // SAFETY: The ioctl takes a number and gives a descriptor.
    let fd = unsafe { libc::ioctl(kvm.as_raw_fd(), requests::CREATE_VM as _, vm_type) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("KVM_CREATE_VM");
    }
    Ok(fd)
}

/// Creates a VM that takes the name away from those to come.
///
/// KVM names a folder of some 60 files in debugfs after the process and the descriptor. It does
/// without if there is such a folder. Programs' VMs all have one descriptor, and to make and remove
/// their files would take more time than all that is to be looked at.
fn namesake(kvm: &Kvm) -> Result<OwnedFd> {
    const OUT_OF_THE_WAY: i32 = 500;

    let fd = create_vm(kvm, 0)?;
    // SAFETY: Takes a descriptor and a number and gives a descriptor.
    let moved = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, OUT_OF_THE_WAY) };
    close(fd);
    if moved < 0 {
        return Err(io::Error::last_os_error()).context("dup");
    }
    // SAFETY: The kernel has just made this file descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(moved) })
}

/// Waits a little for what began then, the longer the longer it takes: this thread keeps all others
/// that do not run in real time, those of the kernel too, from its processor until it sleeps.
fn patience(began: Instant, what: &str) -> Result<()> {
    let waited = began.elapsed();

    if waited > PATIENCE {
        bail!("{what} does not come to an end");
    }
    thread::sleep((waited / 4).clamp(Duration::from_micros(100), Duration::from_millis(1)));
    Ok(())
}

fn close(fd: i32) {
    // SAFETY: The program's descriptors belong to nobody else, and each is closed once.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

fn close_if(fd: Option<i32>) {
    if let Some(fd) = fd {
        close(fd);
    }
}
