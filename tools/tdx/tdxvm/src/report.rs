// SPDX-License-Identifier: GPL-2.0

//! What a run leaves behind, for people and for programs.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;
use tdx_uapi::errno_name;

use crate::measure::Mrtd;
use crate::tdvf::Section;
use crate::tdx::IoctlError;

/// One kind of ioctl of a run, issued once or several times.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// The ioctl, or the KVM_TDX_* command.
    pub name: &'static str,
    /// What it was about.
    pub detail: String,
    /// `ok`, or the errno.
    pub result: String,
    /// The TDX module's status, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hw_error: Option<String>,
    /// How often it was issued.
    pub calls: u64,
    /// How often it was interrupted and went on.
    pub resumed: u64,
    /// Duration in TSC ticks.
    pub ticks: u64,
    /// Duration in microseconds.
    pub microseconds: u64,
}

impl Step {
    /// Notes what an ioctl ended with.
    pub fn set_result(&mut self, error: Option<IoctlError>) {
        self.result = match error {
            None => "ok".to_string(),
            Some(error) => errno_name(error.errno)
                .map_or_else(|| format!("errno {}", error.errno), str::to_string),
        };
        self.hw_error = error
            .and_then(IoctlError::status)
            .map(|status| format!("{:#018x} {status}", status.0));
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut calls = String::new();
        if self.calls > 1 {
            calls += &format!(" x{}", self.calls);
        }
        if self.resumed > 0 {
            calls += &format!(", {} times interrupted", self.resumed);
        }
        write!(
            f,
            "  {:<6} {:<31} {:>14} ticks {:>9.3} ms  {}{calls}",
            self.result,
            self.name,
            grouped(self.ticks),
            self.microseconds as f64 / 1000.0,
            self.detail,
        )
    }
}

/// One section that was loaded.
#[derive(Clone, Debug, Serialize)]
pub struct Loaded {
    /// The section as the metadata describes it.
    #[serde(flatten)]
    pub section: Section,
    /// Pages added.
    pub pages: u64,
    /// Time it took in TSC ticks.
    pub ticks: u64,
}

/// What went wrong.
#[derive(Clone, Debug, Serialize)]
pub struct Failed {
    /// The ioctl, if one failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<&'static str>,
    /// In words.
    pub message: String,
    /// What to do about it.
    pub advice: String,
}

/// A whole run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Version of this tool.
    pub tdxvm: &'static str,
    /// The running kernel.
    pub kernel: String,
    /// The firmware's file.
    pub firmware: String,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// RAM in bytes.
    pub memory: u64,
    /// How many TDs were made, one after the other.
    pub runs: u64,
    /// The TD's TSC frequency.
    pub tsc_khz: u64,
    /// Attributes given to the TD.
    pub attributes: String,
    /// Extended features given to the TD.
    pub xfam: String,
    /// Number of CPUID leaves that were configured.
    pub cpuid_configured: usize,
    /// Number of CPUID leaves that the TD sees.
    pub cpuid_seen: usize,
    /// The ioctls of the last run, in order.
    pub steps: Vec<Step>,
    /// The sections loaded by the last run, in order.
    pub sections: Vec<Loaded>,
    /// Pages added to the TD.
    pub pages_added: u64,
    /// Pages of these whose content was measured.
    pub pages_measured: u64,
    /// MRTD as computed here from the file.
    pub mrtd_expected: Option<Mrtd>,
    /// MRTD as the TDX module has it.
    pub mrtd_module: Option<Mrtd>,
    /// Whether the two agree; nothing if the module's cannot be read.
    pub mrtd_agrees: Option<bool>,
    /// TDX ioctls by implementation during the runs, as the kernel counts them.
    pub served: Option<HashMap<String, u64>>,
    /// What KVM_RUN came back with, if it was tried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entered: Option<String>,
    /// Whether everything held.
    pub ok: bool,
    /// What did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failed>,
}

/// Writes a number with its digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1234567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
    }
}
