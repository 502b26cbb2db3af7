// SPDX-License-Identifier: GPL-2.0

//! KVM's ioctls that a program can make, besides KVM_MEMORY_ENCRYPT_OP.

use kvm_bindings::KVMIO;
use serde::de::Error;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

use crate::program::Kind;

/// An ioctl: an index into [`REQUESTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request(u8);

/// What the argument of an ioctl is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A value, none of which is more ordinary than others.
    Value,
    /// The address of a structure.
    Struct(Kind),
}

struct Info {
    name: &'static str,
    number: u64,
    argument: Argument,
    /// Whether it belongs on a vCPU.
    vcpu: bool,
}

const NONE: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;

/// An ioctl's number, as `_IOC()` puts it together.
const fn number(direction: u64, nr: u64, size: u64) -> u64 {
    direction << 30 | size << 16 | (KVMIO as u64) << 8 | nr
}

const fn value(name: &'static str, vcpu: bool, nr: u64) -> Info {
    Info {
        name,
        number: number(NONE, nr, 0),
        argument: Argument::Value,
        vcpu,
    }
}

const fn zeros(name: &'static str, vcpu: bool, direction: u64, nr: u64, size: u16) -> Info {
    Info {
        name,
        number: number(direction, nr, size as u64),
        argument: Argument::Struct(Kind::Zeros(size)),
        vcpu,
    }
}

const fn structure(
    name: &'static str,
    vcpu: bool,
    direction: u64,
    nr: u64,
    size: u64,
    kind: Kind,
) -> Info {
    Info {
        name,
        number: number(direction, nr, size),
        argument: Argument::Struct(kind),
        vcpu,
    }
}

/// What a program needs for a TD first, then what TDs refuse, or not.
///
/// What answers with a time, or leaves something for later, cannot be compared and is not here.
static REQUESTS: &[Info] = &[
    structure(
        "KVM_ENABLE_CAP",
        false,
        WRITE,
        0xa3,
        104,
        Kind::SplitIrqchip,
    ),
    structure(
        "KVM_SET_USER_MEMORY_REGION2",
        false,
        WRITE,
        0x49,
        160,
        Kind::Slot,
    ),
    structure(
        "KVM_SET_MEMORY_ATTRIBUTES",
        false,
        WRITE,
        0xd2,
        32,
        Kind::Attributes,
    ),
    structure("KVM_SET_CPUID2", true, WRITE, 0x90, 8, Kind::SupportedCpuid),
    value("KVM_SET_TSC_KHZ", false, 0xa2),
    structure("KVM_GET_CPUID2", true, READ | WRITE, 0x91, 8, Kind::Cpuid),
    structure(
        "KVM_PRE_FAULT_MEMORY",
        true,
        READ | WRITE,
        0xd5,
        64,
        Kind::PreFault,
    ),
    value("KVM_GET_TSC_KHZ", false, 0xa3),
    zeros("KVM_SET_USER_MEMORY_REGION", false, WRITE, 0x46, 32),
    zeros("KVM_SET_IDENTITY_MAP_ADDR", false, WRITE, 0x48, 8),
    zeros("KVM_GET_DIRTY_LOG", false, WRITE, 0x42, 16),
    zeros("KVM_GET_IRQCHIP", false, READ | WRITE, 0x62, 520),
    zeros("KVM_SET_IRQCHIP", false, READ, 0x63, 520),
    zeros("KVM_CREATE_PIT2", false, WRITE, 0x77, 64),
    zeros("KVM_MEMORY_ENCRYPT_REG_REGION", false, READ, 0xbb, 16),
    zeros("KVM_MEMORY_ENCRYPT_UNREG_REGION", false, READ, 0xbc, 16),
    value("KVM_CREATE_IRQCHIP", false, 0x60),
    value("KVM_SET_TSS_ADDR", false, 0x47),
    value("KVM_SET_BOOT_CPU_ID", false, 0x78),
    value("KVM_CHECK_EXTENSION", false, 0x03),
    zeros("KVM_GET_REGS", true, READ, 0x81, 144),
    zeros("KVM_SET_REGS", true, WRITE, 0x82, 144),
    zeros("KVM_GET_SREGS", true, READ, 0x83, 312),
    zeros("KVM_SET_SREGS", true, WRITE, 0x84, 312),
    zeros("KVM_GET_SREGS2", true, READ, 0xcc, 320),
    zeros("KVM_SET_SREGS2", true, WRITE, 0xcd, 320),
    zeros("KVM_TRANSLATE", true, READ | WRITE, 0x85, 24),
    zeros("KVM_INTERRUPT", true, WRITE, 0x86, 4),
    structure("KVM_GET_MSRS", true, READ | WRITE, 0x88, 8, Kind::Msrs),
    structure("KVM_SET_MSRS", true, WRITE, 0x89, 8, Kind::Msrs),
    zeros("KVM_GET_FPU", true, READ, 0x8c, 416),
    zeros("KVM_SET_FPU", true, WRITE, 0x8d, 416),
    zeros("KVM_SET_LAPIC", true, WRITE, 0x8f, 1024),
    zeros("KVM_GET_MP_STATE", true, READ, 0x98, 4),
    zeros("KVM_SET_MP_STATE", true, WRITE, 0x99, 4),
    zeros("KVM_GET_VCPU_EVENTS", true, READ, 0x9f, 64),
    zeros("KVM_SET_VCPU_EVENTS", true, WRITE, 0xa0, 64),
    zeros("KVM_SET_GUEST_DEBUG", true, WRITE, 0x9b, 72),
    zeros("KVM_GET_DEBUGREGS", true, READ, 0xa1, 128),
    zeros("KVM_SET_DEBUGREGS", true, WRITE, 0xa2, 128),
    zeros("KVM_GET_XSAVE", true, READ, 0xa4, 4096),
    zeros("KVM_SET_XSAVE", true, WRITE, 0xa5, 4096),
    zeros("KVM_GET_XCRS", true, READ, 0xa6, 392),
    zeros("KVM_SET_XCRS", true, WRITE, 0xa7, 392),
    value("KVM_NMI", true, 0x9a),
    value("KVM_SMI", true, 0xb7),
    value("KVM_KVMCLOCK_CTRL", true, 0xad),
];

pub const ENABLE_CAP: Request = Request(0);
pub const SET_USER_MEMORY_REGION2: Request = Request(1);
pub const SET_MEMORY_ATTRIBUTES: Request = Request(2);
pub const SET_CPUID2: Request = Request(3);
pub const SET_TSC_KHZ: Request = Request(4);

/// KVM_CREATE_VM's and others' numbers, which are no choice of a program.
pub const CREATE_VM: u64 = number(NONE, 0x01, 0);
pub const CREATE_VCPU: u64 = number(NONE, 0x41, 0);
pub const CREATE_GUEST_MEMFD: u64 = number(READ | WRITE, 0xd4, 64);
pub const RUN: u64 = number(NONE, 0x80, 0);
pub const MEMORY_ENCRYPT_OP: u64 = number(READ | WRITE, 0xba, 8);

impl Request {
    /// All of them.
    pub fn all() -> impl ExactSizeIterator<Item = Self> {
        (0..REQUESTS.len()).map(|index| Self(index as u8))
    }

    fn info(self) -> &'static Info {
        &REQUESTS[usize::from(self.0)]
    }

    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// The number that the kernel knows it by.
    pub fn number(self) -> u64 {
        self.info().number
    }

    /// What its argument is.
    pub fn argument(self) -> Argument {
        self.info().argument
    }

    /// Whether it belongs on a vCPU.
    pub fn is_vcpus(self) -> bool {
        self.info().vcpu
    }
}

impl Serialize for Request {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Request {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::all()
            .find(|request| request.name() == name)
            .ok_or_else(|| D::Error::custom(format!("there is no ioctl {name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_mean_what_they_say() {
        for (request, name) in [
            (ENABLE_CAP, "KVM_ENABLE_CAP"),
            (SET_USER_MEMORY_REGION2, "KVM_SET_USER_MEMORY_REGION2"),
            (SET_MEMORY_ATTRIBUTES, "KVM_SET_MEMORY_ATTRIBUTES"),
            (SET_CPUID2, "KVM_SET_CPUID2"),
            (SET_TSC_KHZ, "KVM_SET_TSC_KHZ"),
        ] {
            assert_eq!(request.name(), name);
        }
    }

    #[test]
    fn names_and_numbers_are_unique() {
        for (i, a) in REQUESTS.iter().enumerate() {
            for b in &REQUESTS[i + 1..] {
                assert_ne!(a.name, b.name);
                assert_ne!(a.number, b.number, "{} and {}", a.name, b.name);
            }
        }
    }

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(ENABLE_CAP.number(), 0x4068_aea3);
        assert_eq!(SET_USER_MEMORY_REGION2.number(), 0x40a0_ae49);

        assert_eq!(MEMORY_ENCRYPT_OP, 0xc008_aeba);
        assert_eq!(CREATE_GUEST_MEMFD, 0xc040_aed4);
    }
}
