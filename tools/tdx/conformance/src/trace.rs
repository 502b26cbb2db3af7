// SPDX-License-Identifier: GPL-2.0

//! SEAMCALLs, as the emulated module's tracepoint reports them.
//!
//! Read from the ring buffers in binary: text would cost more than the SEAMCALLs.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use tdx_emulator_host::module::Module;

const TRACING: &str = "/sys/kernel/tracing";
const INSTANCE: &str = "/sys/kernel/tracing/instances/conformance";
const EVENT: &str = "events/tdx_emulator/seamcall";
const PAGE: usize = 4096;

/// A SEAMCALL that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seamcall {
    /// Ticks of the TSC.
    pub time: u64,
    pub cpu: usize,
    pub leaf: u16,
    pub version: u8,
    /// RCX, RDX, R8 and R9 on entry.
    pub operands: [u64; 4],
    pub status: u64,
}

/// Where a field of the event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    offset: usize,
    size: usize,
}

impl Field {
    fn read(self, event: &[u8]) -> Option<u64> {
        let bytes = event.get(self.offset..self.offset + self.size)?;
        let mut value = [0; 8];
        value.get_mut(..self.size)?.copy_from_slice(bytes);
        Some(u64::from_le_bytes(value))
    }
}

/// What the event looks like.
#[derive(Debug)]
struct Format {
    id: u64,
    common_type: Field,
    leaf: Field,
    version: Field,
    operands: [Field; 4],
    rax: Field,
}

impl Format {
    fn parse(text: &str) -> Result<Self> {
        let mut id = None;
        let mut fields = HashMap::new();
        for line in text.lines() {
            if let Some(number) = line.strip_prefix("ID: ") {
                id = Some(number.trim().parse()?);
            }
            let Some(rest) = line.trim().strip_prefix("field:") else {
                continue;
            };
            let mut parts = rest.split(';');
            let name = parts
                .next()
                .and_then(|declaration| declaration.split_whitespace().last());
            let mut numbers = parts.filter_map(|part| part.trim().split_once(':'));
            let mut number = |wanted: &str| {
                numbers
                    .find(|(name, _)| *name == wanted)
                    .and_then(|(_, value)| value.parse::<usize>().ok())
            };
            if let (Some(name), Some(offset), Some(size)) = (name, number("offset"), number("size"))
            {
                fields.insert(name.to_string(), Field { offset, size });
            }
        }
        let field = |name: &str| {
            fields
                .get(name)
                .copied()
                .with_context(|| format!("the event seamcall has no field {name}"))
        };
        Ok(Self {
            id: id.context("the event seamcall has no number")?,
            common_type: field("common_type")?,
            leaf: field("leaf")?,
            version: field("version")?,
            operands: [field("rcx")?, field("rdx")?, field("r8")?, field("r9")?],
            rax: field("rax")?,
        })
    }

    fn seamcall(&self, time: u64, cpu: usize, event: &[u8]) -> Option<Seamcall> {
        if self.common_type.read(event)? != self.id {
            return None;
        }
        let mut operands = [0; 4];
        for (operand, field) in operands.iter_mut().zip(&self.operands) {
            *operand = field.read(event)?;
        }
        Some(Seamcall {
            time,
            cpu,
            leaf: self.leaf.read(event)? as u16,
            version: self.version.read(event)? as u8,
            operands,
            status: self.rax.read(event)?,
        })
    }
}

/// What the header of a page of the ring buffer says.
const MISSED_EVENTS: u64 = 1 << 31;
const COMMIT_MASK: u64 = (1 << 20) - 1;

/// Calls `found` with the time and the contents of each event on a page of the ring buffer.
///
/// Returns whether events were lost before this page.
fn for_each_event(page: &[u8], mut found: impl FnMut(u64, &[u8])) -> Result<bool> {
    const PADDING: u32 = 29;
    const TIME_EXTEND: u32 = 30;
    const TIME_STAMP: u32 = 31;

    let word = |at: usize| {
        let bytes = page
            .get(at..at + 4)
            .context("an event beyond the end of its page")?;
        Ok::<_, anyhow::Error>(u32::from_le_bytes(bytes.try_into()?))
    };
    let long =
        |at: usize| Ok::<_, anyhow::Error>(u64::from(word(at)?) | u64::from(word(at + 4)?) << 32);

    let mut time = long(0)?;
    let commit = long(8)?;
    let end = 16 + (commit & COMMIT_MASK) as usize;
    let mut at = 16;
    while at < end {
        let header = word(at)?;
        let (kind, delta) = (header & 0x1f, u64::from(header >> 5));
        match kind {
            PADDING if delta == 0 => break,
            PADDING => {
                time += delta;
                at += 4 + word(at + 4)? as usize;
            }
            TIME_EXTEND => {
                time += delta | u64::from(word(at + 4)?) << 27;
                at += 8;
            }
            TIME_STAMP => {
                // The upper bits do not fit and are those of the page.
                let low = delta | u64::from(word(at + 4)?) << 27;
                time = (time & !((1 << 59) - 1)) | low;
                at += 8;
            }
            _ => {
                time += delta;
                let (start, len) = match kind {
                    0 => (at + 8, (word(at + 4)? as usize).saturating_sub(4)),
                    words => (at + 4, words as usize * 4),
                };
                let event = page
                    .get(start..start + len)
                    .context("an event beyond its page")?;
                found(time, event);
                at = start + len;
            }
        }
    }
    Ok(commit & MISSED_EVENTS != 0)
}

/// A tracing instance of our own, in which SEAMCALLs are all there is.
#[derive(Debug)]
pub struct Tracer {
    format: Format,
    buffers: Vec<File>,
    page: Vec<u8>,
}

fn write(path: impl AsRef<Path>, text: &str) -> Result<()> {
    let path = path.as_ref();
    fs::write(path, text).with_context(|| format!("cannot write {text:?} to {}", path.display()))
}

impl Tracer {
    /// Begins to trace.
    pub fn start(kilobytes: u32) -> Result<Self> {
        let instance = PathBuf::from(INSTANCE);
        if !instance.exists() {
            fs::create_dir(&instance)
                .with_context(|| format!("cannot make {INSTANCE}: is {TRACING} mounted?"))?;
        }
        let text = fs::read_to_string(instance.join(EVENT).join("format"))
            .context("no event tdx_emulator:seamcall: is the emulated TDX module there?")?;
        write(instance.join("trace_clock"), "x86-tsc")?;
        write(instance.join("buffer_size_kb"), &kilobytes.to_string())?;
        write(instance.join(EVENT).join("enable"), "1")?;
        write(instance.join("tracing_on"), "1")?;
        let mut buffers = Vec::new();
        for cpu in 0.. {
            let path = instance.join(format!("per_cpu/cpu{cpu}/trace_pipe_raw"));
            if !path.exists() {
                break;
            }
            let file = fs::OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(&path)
                .with_context(|| format!("cannot open {}", path.display()))?;
            buffers.push(file);
        }
        Ok(Self {
            format: Format::parse(&text)?,
            buffers,
            page: vec![0; PAGE],
        })
    }

    /// Takes what was traced since the last time, in the order of time.
    pub fn take(&mut self) -> Result<Vec<Seamcall>> {
        let mut seamcalls = Vec::new();
        for (cpu, buffer) in self.buffers.iter_mut().enumerate() {
            loop {
                match buffer.read(&mut self.page) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        return Err(error).with_context(|| {
                            format!("cannot read the trace (descriptor {})", buffer.as_raw_fd())
                        })
                    }
                }
                let format = &self.format;
                let lost = for_each_event(&self.page, |time, event| {
                    seamcalls.extend(format.seamcall(time, cpu, event));
                })?;
                if lost {
                    bail!("the trace's buffer is too small: SEAMCALLs were lost");
                }
            }
        }
        seamcalls.sort_by_key(|seamcall| seamcall.time);
        Ok(seamcalls)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.buffers.clear();
        // That nobody looks any more is all that matters.
        let _ = write(Path::new(INSTANCE).join(EVENT).join("enable"), "0");
        let _ = fs::remove_dir(INSTANCE);
    }
}

/// Takes a vCPU from the processor that it was loaded by.
pub const VP_FLUSH: u16 = 18;

/// A leaf as the emulated module calls it, or its number.
pub fn leaf_name(leaf: u16) -> Cow<'static, str> {
    Module::leaf_name(leaf).map_or_else(|| leaf.to_string().into(), Cow::from)
}

/// What a register is to a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operand {
    /// The same in each run.
    Plain,
    /// The address of a page, perhaps with a key ID in its upper bits.
    Page,
    /// A key ID.
    KeyId,
    /// Part of a VMCS field, which may be an address.
    Field,
    /// The address of an object that KVM has for itself.
    Object,
}

/// Bits of a physical address that the machine uses. Key IDs are above.
const ADDRESS_BITS: u32 = 36;
const ADDRESS_MASK: u64 = (1 << ADDRESS_BITS) - 1;

/// Fields of a VMCS that hold addresses: of the posted-interrupt descriptor, and of the root of the
/// EPT for shared memory.
const VMCS_POSTED_INTR_DESC_ADDR: u64 = 0x2016;
const VMCS_SHARED_EPT_POINTER: u64 = 0x203c;

/// The operands of a leaf: RCX, RDX, R8, R9.
fn operands(leaf: u16) -> [Operand; 4] {
    use Operand::Field;
    use Operand::KeyId;
    use Operand::Object;
    use Operand::Page;
    use Operand::Plain;

    match leaf {
        // MEM.PAGE.ADD
        2 => [Plain, Page, Page, Page],
        // MEM.SEPT.ADD, MEM.PAGE.AUG
        3 | 6 => [Plain, Page, Page, Plain],
        // MEM.RANGE.BLOCK, MR.EXTEND, MEM.PAGE.REMOVE, MEM.RANGE.UNBLOCK
        7 | 16 | 29 | 39 => [Plain, Page, Plain, Plain],
        // MNG.CREATE
        9 => [Page, KeyId, Plain, Plain],
        // MNG.ADDCX, VP.ADDCX, VP.CREATE
        1 | 4 | 10 => [Page, Page, Plain, Plain],
        // MNG.INIT
        21 => [Page, Object, Plain, Plain],
        // VP.WR
        43 => [Page, Plain, Field, Plain],
        // PHYMEM.CACHE.WB
        40 => [Plain; 4],
        // What is left takes a page of a TD first.
        _ => [Page, Plain, Plain, Plain],
    }
}

/// Gives what is different in each run a number, by the order in which it occurs.
///
/// A page that the TD does not own any more, or never got, is a new one when it comes again: whether
/// it does is up to the page allocator.
#[derive(Debug, Default)]
pub struct Names {
    pages: Numbers,
    key_ids: Numbers,
}

#[derive(Debug, Default)]
struct Numbers {
    known: HashMap<u64, u64>,
    last: u64,
}

impl Numbers {
    fn of(&mut self, value: u64) -> u64 {
        *self.known.entry(value).or_insert_with(|| {
            self.last += 1;
            self.last
        })
    }
}

/// A SEAMCALL as it can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub leaf: u16,
    pub version: u8,
    pub operands: [Name; 4],
    pub status: u64,
}

/// An operand as it can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    Plain(u64),
    /// The how manieth page, what is in the bits below its address, and whose key.
    Page {
        page: u64,
        low: u64,
        key_id: u64,
    },
    KeyId(u64),
    /// An object whose place says nothing.
    Object,
}

impl Names {
    fn key_id(&mut self, key_id: u64) -> u64 {
        match key_id {
            0 => 0,
            key_id => self.key_ids.of(key_id),
        }
    }

    fn page(&mut self, value: u64) -> Name {
        let address = value & ADDRESS_MASK;
        Name::Page {
            page: self.pages.of(address >> 12),
            low: address & 0xfff,
            // Above the address there may be more than the key ID. It is the same each time, too.
            key_id: self.key_id(value >> ADDRESS_BITS),
        }
    }

    /// Names the operands of a SEAMCALL.
    pub fn name(&mut self, seamcall: &Seamcall) -> Named {
        let kinds = operands(seamcall.leaf);
        let mut named = [Name::Plain(0); 4];
        for ((name, kind), value) in named.iter_mut().zip(kinds).zip(seamcall.operands) {
            *name = match kind {
                Operand::Plain => Name::Plain(value),
                Operand::Page => self.page(value),
                Operand::KeyId => Name::KeyId(self.key_id(value)),
                Operand::Object => Name::Object,
                Operand::Field => match seamcall.operands[1] & 0xffff_ffff {
                    VMCS_POSTED_INTR_DESC_ADDR => Name::Object,
                    VMCS_SHARED_EPT_POINTER => self.page(value),
                    _ => Name::Plain(value),
                },
            };
        }
        if let Some(page) = given_back(seamcall) {
            self.pages.known.remove(&((page & ADDRESS_MASK) >> 12));
        }
        Named {
            leaf: seamcall.leaf,
            version: seamcall.version,
            operands: named,
            status: seamcall.status,
        }
    }
}

/// The page that is the kernel's again, or still, after a SEAMCALL.
fn given_back(seamcall: &Seamcall) -> Option<u64> {
    let [rcx, _, r8, _] = seamcall.operands;
    let failed = seamcall.status >> 63 != 0;
    match seamcall.leaf {
        // PHYMEM.PAGE.RECLAIM; PHYMEM.PAGE.WBINVD, which is the end of a page of the guest.
        28 if !failed => Some(rcx),
        41 => Some(rcx),
        // MNG.ADDCX, VP.ADDCX, MNG.CREATE, VP.CREATE
        1 | 4 | 9 | 10 if failed => Some(rcx),
        // MEM.PAGE.ADD, MEM.SEPT.ADD, MEM.PAGE.AUG
        2 | 3 | 6 if failed => Some(r8),
        _ => None,
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(value) => write!(f, "{value:#x}"),
            Self::Page { page, low, key_id } => {
                write!(f, "page#{page}")?;
                if *low != 0 {
                    write!(f, "+{low:#x}")?;
                }
                if *key_id != 0 {
                    write!(f, "(key#{key_id})")?;
                }
                Ok(())
            }
            Self::KeyId(key_id) => write!(f, "key#{key_id}"),
            Self::Object => f.write_str("object"),
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [rcx, rdx, r8, r9] = &self.operands;
        write!(f, "SEAMCALL {}", leaf_name(self.leaf))?;
        if self.version != 0 {
            write!(f, " version {}", self.version)?;
        }
        write!(f, "({rcx}, {rdx}, {r8}, {r9}) = {:#x}", self.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "name: seamcall
ID: 917
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:u16 leaf;\toffset:8;\tsize:2;\tsigned:0;
\tfield:u8 version;\toffset:10;\tsize:1;\tsigned:0;
\tfield:u64 rcx;\toffset:16;\tsize:8;\tsigned:0;
\tfield:u64 rdx;\toffset:24;\tsize:8;\tsigned:0;
\tfield:u64 r8;\toffset:32;\tsize:8;\tsigned:0;
\tfield:u64 r9;\toffset:40;\tsize:8;\tsigned:0;
\tfield:u64 rax;\toffset:48;\tsize:8;\tsigned:0;
\tfield:__data_loc char[] name;\toffset:56;\tsize:4;\tsigned:1;
";

    fn event(leaf: u16, operands: [u64; 4]) -> Vec<u8> {
        let mut bytes = vec![0; 56];
        bytes[..2].copy_from_slice(&917u16.to_le_bytes());
        bytes[8..10].copy_from_slice(&leaf.to_le_bytes());
        for (index, operand) in operands.iter().enumerate() {
            bytes[16 + index * 8..24 + index * 8].copy_from_slice(&operand.to_le_bytes());
        }
        bytes
    }

    fn page(events: &[Vec<u8>], flags: u64) -> Vec<u8> {
        let mut data = Vec::new();
        // A time extension first, then events with their length in the header or after it.
        data.extend((30u32 | 5 << 5).to_le_bytes());
        data.extend(1u32.to_le_bytes());
        for (index, event) in events.iter().enumerate() {
            if index % 2 == 0 {
                data.extend(((event.len() as u32 / 4) | (3 << 5)).to_le_bytes());
            } else {
                data.extend((3u32 << 5).to_le_bytes());
                data.extend((event.len() as u32 + 4).to_le_bytes());
            }
            data.extend(event);
        }
        let mut page = 1000u64.to_le_bytes().to_vec();
        page.extend((data.len() as u64 | flags).to_le_bytes());
        page.extend(data);
        page.resize(PAGE, 0);
        page
    }

    #[test]
    fn events_are_found_on_a_page() {
        let format = Format::parse(FORMAT).unwrap();
        let events = [
            event(9, [0x1000, 32, 0, 0]),
            event(1, [0x2000, 0x1000, 0, 0]),
        ];
        let mut found = Vec::new();
        let lost = for_each_event(&page(&events, 0), |time, event| {
            found.extend(format.seamcall(time, 1, event));
        });
        assert!(!lost.unwrap());
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].leaf, found[0].operands[1]), (9, 32));
        assert_eq!(found[0].time, 1000 + 5 + (1 << 27) + 3);
        assert_eq!(found[1].time, found[0].time + 3);
        assert!(for_each_event(&page(&events, MISSED_EVENTS), |_, _| ()).unwrap());
    }

    #[test]
    fn a_broken_page_is_no_panic() {
        let mut bytes = page(&[event(1, [0; 4])], 0);
        bytes[8..12].copy_from_slice(&4080u32.to_le_bytes());
        bytes[24..28].copy_from_slice(&(28u32 | 1 << 5).to_le_bytes());
        let _ = for_each_event(&bytes, |_, _| ());
        assert!(for_each_event(&[0; 8], |_, _| ()).is_err());
    }

    #[test]
    fn leaves_have_names() {
        let call = |leaf, version| Seamcall {
            time: 0,
            cpu: 0,
            leaf,
            version,
            operands: [0x1000, 0, 0, 0],
            status: 0,
        };
        let shown = |leaf, version| Names::default().name(&call(leaf, version)).to_string();
        assert_eq!(
            shown(18, 0),
            "SEAMCALL VP.FLUSH(page#1, 0x0, 0x0, 0x0) = 0x0"
        );
        assert_eq!(
            shown(22, 1),
            "SEAMCALL VP.INIT version 1(page#1, 0x0, 0x0, 0x0) = 0x0"
        );
        assert!(shown(99, 0).starts_with("SEAMCALL 99("));
    }

    #[test]
    fn pages_and_keys_are_named_in_order() {
        let call = |leaf, operands| Seamcall {
            time: 0,
            cpu: 0,
            leaf,
            version: 0,
            operands,
            status: 0,
        };
        let name = |tdr: u64, key_id: u64, tdcx: u64| {
            let mut names = Names::default();
            [
                names.name(&call(9, [tdr, key_id, 0, 0])),
                names.name(&call(1, [tdcx, tdr, 0, 0])),
                names.name(&call(41, [tdr | 1 << ADDRESS_BITS, 0, 0, 0])),
            ]
        };
        assert_eq!(name(0x1000, 33, 0x5000), name(0x9000, 35, 0x2000));
        assert_ne!(name(0x1000, 33, 0x5000), name(0x1000, 33, 0x1000));
        // A page that was given back is a new one.
        let life = |second: u64| {
            let mut names = Names::default();
            [
                names.name(&call(9, [0x1000, 33, 0, 0])),
                names.name(&call(28, [0x1000, 0, 0, 0])),
                names.name(&call(9, [second, 33, 0, 0])),
            ]
        };
        assert_eq!(life(0x1000), life(0x2000));
        // What is no address has to be the same.
        let mut names = Names::default();
        assert_ne!(
            names.name(&call(16, [0x1000, 0x1000, 0, 0])),
            names.name(&call(16, [0x1100, 0x1000, 0, 0]))
        );
    }
}
