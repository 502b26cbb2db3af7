// SPDX-License-Identifier: GPL-2.0

//! Counts the instructions that KVM executes for the TDX ioctls, in C and in Rust.
//!
//! A kernel with `CONFIG_KVM_INTEL_TDX_BENCH` single-steps what it is asked to, through the debugfs
//! file `kvm_tdx_bench`. SEAMCALLs are not counted where they are emulated by their trap.

use std::cell::RefCell;
use std::fs;
use std::fs::File;
use std::io;
use std::iter;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use kvm_bindings::kvm_create_guest_memfd;
use kvm_bindings::kvm_enable_cap;
use kvm_bindings::kvm_memory_attributes;
use kvm_bindings::kvm_userspace_memory_region2;
use kvm_bindings::KVM_CAP_SPLIT_IRQCHIP;
use kvm_bindings::KVM_MEMORY_ATTRIBUTE_PRIVATE;
use kvm_bindings::KVM_MEM_GUEST_MEMFD;
use kvm_bindings::KVM_X86_TDX_VM;
use kvm_ioctls::Kvm;
use kvm_ioctls::VcpuFd;
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use crate::mem::Mapping;
use crate::run;
use crate::tdvf::PAGE_SIZE;
use crate::tdx;
use tdx_uapi::cpuid;
use tdx_uapi::Cpuid;
use tdx_uapi::ATTR_SEPT_VE_DISABLE;

const BENCH: &str = "/sys/kernel/debug/kvm_tdx_bench";
const SWITCH: &str = "/sys/module/kvm_intel/parameters/tdx_rust";

/// Functions that one count tells apart.
const FUNCTIONS: usize = 640;

/// What is counted: `enum kvm_tdx_bench_what`.
#[derive(Clone, Copy)]
enum What {
    Nothing = 0,
    Ioctl = 1,
    GuardC = 2,
    GuardRust = 3,
    Mutexes = 4,
}

/// `struct kvm_tdx_bench`.
#[repr(C)]
struct Request {
    what: u32,
    fd: i32,
    request: u32,
    nr_functions: u32,
    argument: u64,
    result: i64,
    instructions: u64,
    stack: u64,
    functions: [Function; FUNCTIONS],
}

/// A function of the kernel and how many instructions it executed.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Function {
    address: u64,
    instructions: u64,
}

ioctl_iowr_nr!(KVM_TDX_BENCH, 'T' as u32, 0xbe, Request);

/// What a call cost.
struct Count {
    result: i64,
    instructions: u64,
    stack: u64,
    functions: Vec<Function>,
}

/// The kernel's counter.
struct Counter {
    file: File,
    /// What counting itself adds.
    nothing: (u64, u64),
}

impl Counter {
    fn open() -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(BENCH)
            .with_context(|| {
                format!("cannot open {BENCH}; the kernel needs CONFIG_KVM_INTEL_TDX_BENCH")
            })?;
        let mut counter = Self {
            file,
            nothing: (0, 0),
        };
        let nothing = counter.count(What::Nothing, -1, 0, 0)?;
        counter.nothing = (nothing.instructions, nothing.stack);
        Ok(counter)
    }

    fn count(&self, what: What, fd: RawFd, request: u64, argument: u64) -> Result<Count> {
        let mut call = Box::new(Request {
            what: what as u32,
            fd,
            request: request as u32,
            nr_functions: 0,
            argument,
            result: 0,
            instructions: 0,
            stack: 0,
            functions: [Function::default(); FUNCTIONS],
        });
        // SAFETY: The kernel reads and writes a `struct kvm_tdx_bench`, which `call` is. An ioctl
        // that it issues for us is one that the caller could issue itself.
        if unsafe { ioctl_with_mut_ref(&self.file, KVM_TDX_BENCH(), &mut *call) } != 0 {
            return Err(io::Error::last_os_error()).context("cannot count");
        }
        let functions = (call.nr_functions as usize).min(FUNCTIONS);
        Ok(Count {
            result: call.result,
            instructions: call.instructions.saturating_sub(self.nothing.0),
            stack: call.stack.saturating_sub(self.nothing.1),
            functions: call.functions[..functions].to_vec(),
        })
    }
}

thread_local! {
    /// Counts the TDX commands of this thread, and keeps what the last one cost.
    static COUNTER: RefCell<Option<(Counter, Option<Count>)>> = const { RefCell::new(None) };
}

/// Issues an ioctl and counts its instructions. Returns what the kernel returns.
fn issue(fd: RawFd, request: u64, argument: u64) -> i64 {
    COUNTER.with_borrow_mut(|counter| {
        let Some((counter, last)) = counter else {
            return i64::from(-libc::EBADF);
        };
        let count = counter.count(What::Ioctl, fd, request, argument).ok();
        let result = count.as_ref().map_or(-i64::from(libc::EIO), |c| c.result);
        *last = count;
        result
    })
}

/// Runs `command`, a TDX command, and counts its instructions.
fn counted<T>(command: impl FnOnce() -> tdx::Result<T>) -> Result<(T, Count)> {
    tdx::set_issuer(Some(issue));
    let result = command();
    tdx::set_issuer(None);
    let value = result.map_err(failed)?;
    let count = COUNTER.with_borrow_mut(|counter| counter.as_mut().and_then(|(_, c)| c.take()));
    Ok((value, count.context("nothing was counted")?))
}

fn failed(error: tdx::IoctlError) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

/// Who serves the ioctls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    C,
    Rust,
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::C => "c",
            Self::Rust => "rust",
        }
    }

    fn serve(self) -> Result<()> {
        let value = if self == Self::Rust { "Y" } else { "N" };
        fs::write(SWITCH, value).with_context(|| format!("cannot write {SWITCH}"))
    }
}

fn print(what: &str, who: Who, count: &Count, functions: bool) {
    println!(
        "{what} {} {} {}",
        who.name(),
        count.instructions,
        count.stack
    );
    if functions {
        for function in &count.functions {
            println!(
                "function {what} {} {:x} {}",
                who.name(),
                function.address,
                function.instructions
            );
        }
    }
}

/// A TD with one vCPU, and what it needs to stay alive.
struct Td {
    vcpu: VcpuFd,
    vm: VmFd,
    _private: std::os::fd::OwnedFd,
    _shared: Mapping,
}

/// Where the TD's memory starts.
const BASE: u64 = 1 << 30;

impl Td {
    /// Makes a TD with that many pages of memory. What its ioctls cost is printed if `show`.
    fn new(kvm: &Kvm, who: Who, pages: u64, show: bool) -> Result<Self> {
        let say = |name: &str, count: &Count| {
            if show {
                print(&format!("ioctl {name}"), who, count, true);
            }
        };
        let supported = tdx::supported_cpuid(kvm).map_err(failed)?;
        let vm = kvm.create_vm_with_type(KVM_X86_TDX_VM.into())?;
        vm.enable_cap(&kvm_enable_cap {
            cap: KVM_CAP_SPLIT_IRQCHIP,
            args: [24, 0, 0, 0],
            ..Default::default()
        })?;

        let (caps, count) = counted(|| tdx::capabilities(&vm))?;
        say("CAPABILITIES", &count);
        let chosen = cpuid::choose_cpuid(caps.cpuid.entries(), supported.entries(), 1);
        let xfam = cpuid::choose_xfam(caps.supported_xfam, supported.entries());
        let attributes = caps.supported_attrs & ATTR_SEPT_VE_DISABLE;
        let chosen = Cpuid::new(&chosen);
        let ((), count) = counted(|| tdx::init_vm(&vm, attributes, xfam, &chosen))?;
        say("INIT_VM", &count);

        let vcpu = vm.create_vcpu(0)?;
        let (seen, count) = counted(|| tdx::get_cpuid(&vcpu))?;
        say("GET_CPUID", &count);
        let entries = cpuid::vcpu_cpuid(seen.entries(), supported.entries(), 0);
        tdx::set_cpuid(&vcpu, &Cpuid::new(&entries)).map_err(failed)?;
        let ((), count) = counted(|| tdx::init_vcpu(&vcpu, 0))?;
        say("INIT_VCPU", &count);

        let size = pages * PAGE_SIZE;
        let private = run::guest_memfd(
            &vm,
            kvm_create_guest_memfd {
                size,
                ..Default::default()
            },
        )
        .map_err(failed)?;
        let shared = Mapping::new(size)?;
        let region = kvm_userspace_memory_region2 {
            slot: 0,
            flags: KVM_MEM_GUEST_MEMFD,
            guest_phys_addr: BASE,
            memory_size: size,
            userspace_addr: shared.address(),
            guest_memfd: private.as_raw_fd() as u32,
            ..Default::default()
        };
        // SAFETY: The shared memory is a mapping of ours that is unmapped after the VM is gone, and
        // that nothing in this process reads or writes.
        unsafe { vm.set_user_memory_region2(region)? };
        vm.set_memory_attributes(kvm_memory_attributes {
            address: BASE,
            size,
            attributes: KVM_MEMORY_ATTRIBUTE_PRIVATE.into(),
            flags: 0,
        })?;
        Ok(Self {
            vcpu,
            vm,
            _private: private,
            _shared: shared,
        })
    }

    /// Adds pages from page `first` on, and counts.
    fn add(&self, source: &Mapping, first: u64, pages: u64, measure: bool) -> Result<Count> {
        let gpa = BASE + first * PAGE_SIZE;
        let (done, count) = counted(|| {
            let progress = tdx::init_mem_region(&self.vcpu, source, 0, pages, gpa, measure);
            progress.stopped.map_or(Ok(progress.pages), Err)
        })?;
        anyhow::ensure!(done == pages, "{done} pages were added instead of {pages}");
        Ok(count)
    }
}

/// Each ioctl, once to warm up and then several times: allocators and the scheduler are not always
/// in the same state.
fn ioctls(kvm: &Kvm) -> Result<()> {
    for show in [false, true, true, true] {
        for who in [Who::C, Who::Rust] {
            who.serve()?;
            let td = Td::new(kvm, who, 512, show)?;
            let source = Mapping::filled(PAGE_SIZE)?;
            td.add(&source, 0, 1, true)?;
            let count = td.add(&source, 1, 1, true)?;
            if show {
                print("ioctl INIT_MEM_REGION", who, &count, true);
            }
            let ((), count) = counted(|| tdx::finalize_vm(&td.vm))?;
            if show {
                print("ioctl FINALIZE_VM", who, &count, true);
            }
        }
    }
    Ok(())
}

/// What pages cost, by how many are added at once. Several times: what a page costs depends on what
/// the page allocator has at hand.
fn regions(kvm: &Kvm, sizes: &[u64]) -> Result<()> {
    let most = sizes.iter().copied().max().unwrap_or(1);
    let source = Mapping::filled(most * PAGE_SIZE)?;
    // The allocator fetches pages for many requests at once, which a single page may happen to pay.
    let times = |pages: u64| (8 / pages).max(1);
    let room = sizes.iter().map(|&n| n * times(n)).sum::<u64>() * 2 + 1;
    for who in [Who::C, Who::Rust].repeat(3) {
        who.serve()?;
        let td = Td::new(kvm, who, room, false)?;
        let mut first = 0;
        td.add(&source, first, 1, true)?;
        first += 1;
        for measure in [false, true] {
            for &pages in sizes
                .iter()
                .flat_map(|n| iter::repeat_n(n, times(*n) as usize))
            {
                let count = td.add(&source, first, pages, measure)?;
                first += pages;
                let kind = if measure { "measured" } else { "added" };
                let most = pages == most;
                print(&format!("region {kind}-{pages}"), who, &count, most);
            }
        }
    }
    Ok(())
}

/// How long an ioctl on one vCPU waits while pages are added by another, in ticks of the TSC: what
/// the pages took, and what the ioctl took.
fn latency(kvm: &Kvm, pages: u64) -> Result<()> {
    let source = Mapping::filled(pages * PAGE_SIZE)?;
    for who in [Who::C, Who::Rust] {
        who.serve()?;
        let td = Td::new(kvm, who, pages, false)?;
        let other = td.vm.create_vcpu(1)?;
        let begun = AtomicBool::new(false);

        let (adding, waiting) = thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                while !begun.load(Ordering::Acquire) {
                    thread::yield_now();
                }
                // Long enough for the other one to have the guard.
                thread::sleep(Duration::from_millis(2));
                let start = run::ticks();
                let result = tdx::get_cpuid(&other).map(|_| ());
                (run::ticks().wrapping_sub(start), result)
            });
            begun.store(true, Ordering::Release);
            let start = run::ticks();
            let progress = tdx::init_mem_region(&td.vcpu, &source, 0, pages, BASE, true);
            let adding = run::ticks().wrapping_sub(start);
            (progress.stopped.map_or(Ok(adding), Err), waiter.join())
        });
        let adding = adding.map_err(failed)?;
        let (waiting, result) = waiting.map_err(|_| anyhow::anyhow!("a thread died"))?;
        result.map_err(failed)?;
        println!("latency {pages} {} {adding} {waiting}", who.name());
    }
    Ok(())
}

/// The guard, by how many vCPUs the VM has. The VM is a plain one: a TD can have fewer vCPUs.
fn guards(kvm: &Kvm, sizes: &[u64]) -> Result<()> {
    let vm = kvm.create_vm()?;
    let mut vcpus = 0;
    for &size in sizes {
        while vcpus < size {
            // It stays although its file descriptor is closed.
            drop(vm.create_vcpu(vcpus)?);
            vcpus += 1;
        }
        COUNTER.with_borrow(|counter| -> Result<()> {
            let (counter, _) = counter.as_ref().context("no counter")?;
            let what = format!("guard {size}");
            let fd = vm.as_raw_fd();
            for (name, count) in [
                ("c", counter.count(What::GuardC, fd, 0, 0)?),
                ("rust", counter.count(What::GuardRust, fd, 0, 0)?),
                ("mutexes", counter.count(What::Mutexes, fd, 0, 0)?),
            ] {
                anyhow::ensure!(count.result == 0, "{what}: {name} failed: {}", count.result);
                println!("{what} {name} {} {}", count.instructions, count.stack);
                if size == 48 {
                    for function in &count.functions {
                        let (address, instructions) = (function.address, function.instructions);
                        println!("function {what} {name} {address:x} {instructions}");
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// Counts everything and prints it, a line for each count.
pub fn bench(vcpus: &[u64], pages: &[u64]) -> Result<()> {
    let counter = Counter::open()?;
    COUNTER.set(Some((counter, None)));
    let kvm = run::open_kvm()?;

    ioctls(&kvm)?;
    guards(&kvm, vcpus)?;
    regions(&kvm, pages)?;
    Who::Rust.serve()
}

/// Measures how long one vCPU makes another one wait, and prints it.
pub fn latencies(pages: &[u64]) -> Result<()> {
    // KVM gives a TD at most as many vCPUs as there are CPUs.
    anyhow::ensure!(
        thread::available_parallelism()?.get() > 1,
        "a TD has one vCPU where there is one CPU"
    );
    let counter = Counter::open()?;
    COUNTER.set(Some((counter, None)));
    let kvm = run::open_kvm()?;

    for &pages in pages {
        latency(&kvm, pages)?;
    }
    Who::Rust.serve()
}
