// SPDX-License-Identifier: GPL-2.0

//! Reads what only an emulated TDX module shows: the MRTD of a live TD.
//!
//! On TDX hardware a host cannot read a TD's MRTD; the TD itself reports it in its quote.

use std::collections::HashMap;
use std::fs;

use crate::measure::Mrtd;

const TDS: &str = "/sys/kernel/debug/tdx_emulator/tds";

const SERVED: &str = "/sys/module/kvm_intel/parameters/tdx_served";

/// The TDs that live in an emulated module, by the address of their root page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveTds(HashMap<String, HashMap<String, String>>);

impl LiveTds {
    /// Reads the list, if the module is one that has it.
    pub fn read() -> Option<Self> {
        fs::read_to_string(TDS).ok().map(|text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let tds = text.lines().filter_map(|line| {
            let fields: HashMap<_, _> = line
                .split_whitespace()
                .filter_map(|field| field.split_once('='))
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect();
            Some((fields.get("tdr")?.clone(), fields))
        });
        Self(tds.collect())
    }

    /// Finds the one TD that is not in `before`, and its MRTD.
    pub fn new_mrtd(&self, before: &Self) -> Result<Mrtd, String> {
        let mut new = self
            .0
            .iter()
            .filter(|(tdr, _)| !before.0.contains_key(*tdr));
        let (Some((tdr, td)), None) = (new.next(), new.next()) else {
            return Err(format!(
                "the module lists {} TDs, {} before this one: cannot tell which is ours",
                self.0.len(),
                before.0.len()
            ));
        };
        let text = td.get("mrtd").map_or("", String::as_str);
        Mrtd::from_hex(text)
            .ok_or_else(|| format!("the module shows no MRTD for the TD at {tdr} (\"{text}\")"))
    }
}

/// The kernel's own count of TDX ioctls by implementation, where it keeps one.
pub fn served() -> Option<HashMap<String, u64>> {
    let text = fs::read_to_string(SERVED).ok()?;
    Some(parse_served(&text))
}

fn parse_served(text: &str) -> HashMap<String, u64> {
    text.split_whitespace()
        .filter_map(|field| {
            let (name, count) = field.split_once('=')?;
            Some((name.to_string(), count.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(tdr: &str, mrtd: &str) -> String {
        format!("tdr={tdr} hkid=34 lifecycle=KEYS_CONFIGURED op_state=RUNNABLE vcpus=2 pages=9 mrtd={mrtd}\n")
    }

    #[test]
    fn the_new_td_is_ours() {
        let mrtd = "5a".repeat(48);
        let before = LiveTds::parse(&line("0x1000", "-"));
        let after = LiveTds::parse(&(line("0x1000", "-") + &line("0x2000", &mrtd)));
        assert_eq!(after.new_mrtd(&before), Ok(Mrtd([0x5a; 48])));
    }

    #[test]
    fn doubt_is_said() {
        let none = LiveTds::parse("");
        let one = LiveTds::parse(&line("0x1000", "-"));
        let two = LiveTds::parse(&(line("0x1000", "-") + &line("0x2000", "-")));
        assert!(none.new_mrtd(&none).unwrap_err().contains("cannot tell"));
        assert!(two.new_mrtd(&none).unwrap_err().contains("cannot tell"));
        assert!(one.new_mrtd(&none).unwrap_err().contains("no MRTD"));
    }

    #[test]
    fn served_counts_are_read() {
        let served = parse_served("rust=9 c=0\n");
        assert_eq!((served["rust"], served["c"]), (9, 0));
        assert!(parse_served("").is_empty());
    }
}
