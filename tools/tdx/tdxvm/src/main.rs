// SPDX-License-Identifier: GPL-2.0

//! Takes a TDX trust domain through its set-up with real firmware.

mod bench;
mod load;
mod measure;
mod mem;
mod module;
mod report;
mod run;
mod status;
mod td_hob;
mod tdvf;
mod tdx;

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use clap::Parser;
use clap::Subcommand;
use kvm_ioctls::Cap;
use kvm_ioctls::Kvm;
use serde_json::json;
use serde_json::Value;
use tdx_uapi::cpuid;

use crate::load::Layout;
use crate::report::grouped;
use crate::report::Report;
use crate::run::Options;
use crate::run::RunError;
use crate::tdvf::Tdvf;

/// Takes a TDX trust domain (TD) through its set-up with real firmware.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what TDs on this machine can have
    Caps {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a TD, load firmware into it, finalize it and check its MRTD
    Run {
        /// TDX firmware (TDVF)
        firmware: PathBuf,
        /// Number of vCPUs
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
        vcpus: u32,
        /// RAM, in bytes or with K, M or G
        #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
        memory: u64,
        /// Write everything to FILE as JSON (- for standard output)
        #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
        json: Option<PathBuf>,
        /// Make N TDs, one after the other
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
        repeat: u64,
        /// Try to run vCPU 0 once at the end, and say what came back
        #[arg(long)]
        enter: bool,
    },
    /// Compute the MRTD that a TD with this firmware has
    Mrtd {
        /// TDX firmware (TDVF)
        firmware: PathBuf,
        /// RAM of the TD; matters only if the firmware has its TD HOB measured
        #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
        memory: u64,
    },
    /// Count the instructions of the TDX ioctls, in C and in Rust (needs a kernel for that)
    Bench {
        /// Numbers of vCPUs to take the guard with, ascending
        #[arg(long, value_delimiter = ',', default_value = "1,2,8,48,256,1024,4096")]
        vcpus: Vec<u64>,
        /// Numbers of pages to add at once
        #[arg(long, value_delimiter = ',', default_value = "1,8,64,512")]
        pages: Vec<u64>,
        /// Only measure how long one vCPU makes another one wait; takes two processors
        #[arg(long)]
        latency: bool,
    },
    /// Show the sections of a TDX firmware
    Info {
        /// TDX firmware (TDVF)
        firmware: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Caps { json } => caps(json),
        Command::Run {
            firmware,
            vcpus,
            memory,
            json,
            repeat,
            enter,
        } => run(
            &firmware,
            json.as_deref(),
            Options {
                firmware_name: firmware.display().to_string(),
                vcpus,
                memory,
                repeat,
                enter,
                human: json.as_deref() != Some(Path::new("-")),
            },
        ),
        Command::Mrtd { firmware, memory } => mrtd(&firmware, memory),
        Command::Bench {
            pages,
            latency: true,
            ..
        } => bench::latencies(&pages),
        Command::Bench { vcpus, pages, .. } => bench::bench(&vcpus, &pages),
        Command::Info { firmware, json } => info(&firmware, json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tdxvm: {error:#}");
            if let Some(error) = error.downcast_ref::<RunError>() {
                eprintln!("tdxvm: what to do: {}", error.advice());
            }
            ExitCode::FAILURE
        }
    }
}

/// Reads a size with an optional K, M or G at its end.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        unit => return Err(format!("\"{unit}\" is not a unit: use K, M or G")),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "not a size".to_string())
}

fn read_firmware(path: &Path) -> Result<Tdvf> {
    let name = path.display();
    let size = fs::metadata(path).with_context(|| format!("cannot read {name}"))?;
    anyhow::ensure!(size.is_file(), "{name} is not a file");
    anyhow::ensure!(
        size.len() <= tdvf::MAX_IMAGE,
        "{name} is not TDX firmware: {}",
        tdvf::TdvfError::TooLong(size.len())
    );
    let image = fs::read(path).with_context(|| format!("cannot read {name}"))?;
    Tdvf::parse(image).with_context(|| format!("{name} is not TDX firmware"))
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

fn info(path: &Path, as_json: bool) -> Result<()> {
    let firmware = read_firmware(path)?;
    if as_json {
        return print_json(&json!({
            "size": firmware.size(),
            "base": firmware.base(),
            "descriptor": firmware.descriptor(),
            "sections": firmware.sections(),
        }));
    }
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}: TDX firmware, {} KiB, mapped at {:#x}, metadata at {:#x}",
        path.display(),
        firmware.size() >> 10,
        firmware.base(),
        firmware.descriptor()
    )?;
    writeln!(
        out,
        "  #  {:<12} {:>12} {:>10} {:>10} {:>10}  loaded",
        "type", "address", "size", "offset", "data"
    )?;
    for (index, section) in firmware.sections().iter().enumerate() {
        let loaded = match (section.added_later, section.measured) {
            (true, _) => "while the TD runs",
            (_, true) => "measured",
            (_, false) => "not measured",
        };
        writeln!(
            out,
            "  {index}  {:<12} {:>#12x} {:>#10x} {:>#10x} {:>#10x}  {loaded}",
            section.kind, section.address, section.size, section.data_offset, section.data_size,
        )?;
    }
    Ok(())
}

fn mrtd(path: &Path, memory: u64) -> Result<()> {
    let firmware = read_firmware(path)?;
    let loads = load::plan(&firmware, &Layout::new(memory, &firmware)?)?;
    writeln!(io::stdout(), "{}", measure::mrtd(&loads))?;
    Ok(())
}

fn run(path: &Path, json: Option<&Path>, options: Options) -> Result<()> {
    let firmware = read_firmware(path)?;
    // A file that cannot be written is better known before than after.
    let mut file = match json {
        Some(name) if name != Path::new("-") => {
            Some(File::create(name).with_context(|| format!("cannot write {}", name.display()))?)
        }
        _ => None,
    };
    let start = Instant::now();
    let (report, result) = run::run(&firmware, &options);
    match &mut file {
        Some(file) => run::write_json(&report, file)?,
        None if json.is_some() => print_json(&report)?,
        None => {}
    }
    if options.human && (report.ok || report.mrtd_agrees.is_some()) {
        summarize(&report)?;
        println!("  took {}", run::seconds(start.elapsed()));
    }
    Ok(result?)
}

/// Prints what a run came to.
fn summarize(report: &Report) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out)?;
    writeln!(
        out,
        "  TD        {} vCPUs, {} MiB, attributes {}, XFAM {}, TSC {} kHz",
        report.vcpus,
        report.memory >> 20,
        report.attributes,
        report.xfam,
        grouped(report.tsc_khz)
    )?;
    writeln!(
        out,
        "  pages     {} added, {} of them measured",
        grouped(report.pages_added),
        grouped(report.pages_measured)
    )?;
    if let Some(served) = &report.served {
        let mut served: Vec<_> = served
            .iter()
            .map(|(name, n)| format!("{name} {n}"))
            .collect();
        served.sort_by(|a, b| b.cmp(a));
        writeln!(out, "  served    {} TDX ioctls", served.join(", "))?;
    }
    if let Some(mrtd) = &report.mrtd_expected {
        writeln!(out, "  MRTD      {mrtd} (expected, from the file)")?;
    }
    match (&report.mrtd_module, report.mrtd_agrees) {
        (Some(mrtd), Some(agrees)) => {
            let verdict = if agrees { "agrees" } else { "DIFFERS" };
            writeln!(out, "            {mrtd} (in the TDX module: {verdict})")?;
        }
        _ => writeln!(
            out,
            "            the host cannot read it from the TDX module: compare with the TD's quote"
        )?,
    }
    if let Some(entered) = &report.entered {
        writeln!(out, "  KVM_RUN   {entered}")?;
    }
    if report.ok {
        let times = if report.runs > 1 {
            format!(", {} times", grouped(report.runs))
        } else {
            String::new()
        };
        writeln!(out, "  the TD is finalized and ready to run{times}")?;
    }
    Ok(())
}

fn caps(as_json: bool) -> Result<()> {
    let kvm = Kvm::new().map_err(|error| RunError::NoKvm(error.into()))?;
    let types = kvm.check_extension_raw(kvm_bindings::KVM_CAP_VM_TYPES.into());
    let tdx = run::open_kvm().is_ok();
    let mut value = json!({
        "kvm_api": kvm.get_api_version(),
        "vm_types": format!("{types:#x}"),
        "tdx": tdx,
        "user_memory2": kvm.check_extension(Cap::UserMemory2),
    });
    if tdx {
        merge(&mut value, tdx_caps(&kvm)?);
    }
    if as_json {
        print_json(&value)?;
    } else {
        print_caps(&value)?;
    }
    anyhow::ensure!(tdx, RunError::NoTdx(types));
    Ok(())
}

/// Asks a fresh VM of type TDX what TDs can have.
fn tdx_caps(kvm: &Kvm) -> Result<Value> {
    let failed = |step, error| RunError::Ioctl {
        step,
        detail: "type KVM_X86_TDX_VM".to_string(),
        error,
    };
    let vm = kvm
        .create_vm_with_type(kvm_bindings::KVM_X86_TDX_VM.into())
        .map_err(|error| failed("KVM_CREATE_VM", error.into()))?;
    let caps = tdx::capabilities(&vm).map_err(|error| failed("KVM_TDX_CAPABILITIES", error))?;
    let tsc_khz = tdx::tsc_khz(&vm).map_err(|error| failed("KVM_GET_TSC_KHZ", error))?;
    let leaves: Vec<_> = caps
        .cpuid
        .entries()
        .iter()
        .map(|e| {
            json!({
                "leaf": format!("{:#x}", e.function),
                "index": e.index,
                "eax": format!("{:#010x}", e.eax),
                "ebx": format!("{:#010x}", e.ebx),
                "ecx": format!("{:#010x}", e.ecx),
                "edx": format!("{:#010x}", e.edx),
            })
        })
        .collect();
    Ok(json!({
        "max_vcpus": vm.check_extension_int(Cap::MaxVcpus),
        "guest_memfd": vm.check_extension(Cap::GuestMemfd),
        "memory_attributes": format!("{:#x}", vm.check_extension_int(Cap::MemoryAttributes)),
        "tsc_khz": tsc_khz,
        "attributes": format!("{:#x}", caps.supported_attrs),
        "attribute_names": cpuid::bit_names(caps.supported_attrs, cpuid::ATTRIBUTE_NAMES),
        "xfam": format!("{:#x}", caps.supported_xfam),
        "xfam_names": cpuid::bit_names(caps.supported_xfam, cpuid::XFAM_NAMES),
        "tdvmcall": {
            "kernel_r11": format!("{:#x}", caps.kernel_tdvmcallinfo_1_r11),
            "kernel_r12": format!("{:#x}", caps.kernel_tdvmcallinfo_1_r12),
            "user_r11": format!("{:#x}", caps.user_tdvmcallinfo_1_r11),
            "user_r12": format!("{:#x}", caps.user_tdvmcallinfo_1_r12),
        },
        "configurable_cpuid": leaves,
    }))
}

fn merge(value: &mut Value, more: Value) {
    if let (Some(object), Value::Object(more)) = (value.as_object_mut(), more) {
        object.extend(more);
    }
}

fn print_caps(value: &Value) -> Result<()> {
    let mut out = io::stdout().lock();
    let Some(object) = value.as_object() else {
        return Ok(());
    };
    for (name, value) in object {
        match value {
            Value::String(text) => writeln!(out, "{name:<20} {text}")?,
            Value::Array(items) if items.iter().all(Value::is_string) => {
                let items: Vec<_> = items.iter().filter_map(Value::as_str).collect();
                writeln!(out, "{name:<20} {}", items.join(", "))?;
            }
            Value::Array(items) => {
                writeln!(out, "{name} (bits that can be set)")?;
                for item in items {
                    let field = |name: &str| match &item[name] {
                        Value::String(text) => text.clone(),
                        other => other.to_string(),
                    };
                    writeln!(
                        out,
                        "  {:>10}.{:<2} eax {} ebx {} ecx {} edx {}",
                        field("leaf"),
                        field("index"),
                        field("eax"),
                        field("ebx"),
                        field("ecx"),
                        field("edx")
                    )?;
                }
            }
            Value::Object(fields) => {
                let fields: Vec<_> = fields
                    .iter()
                    .map(|(name, value)| format!("{name} {}", value.as_str().unwrap_or_default()))
                    .collect();
                writeln!(out, "{name:<20} {}", fields.join(", "))?;
            }
            other => writeln!(out, "{name:<20} {other}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_read() {
        for (text, size) in [
            ("4096", 4096),
            ("8K", 8192),
            ("256M", 256 << 20),
            ("2g", 2 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(size));
        }
        for text in ["", "M", "4T", "1.5G", "-1", "99999999999G", "1 G", "G1"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
