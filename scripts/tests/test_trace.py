# SPDX-License-Identifier: GPL-2.0
"""How a trace of SEAMCALLs is read, shown and drawn."""

import base64
import gzip
import importlib.machinery
import importlib.util
import io
from pathlib import Path
import re
import subprocess
import sys
import tempfile
import unittest
from xml.etree import ElementTree

SCRIPT = Path(__file__).resolve().parent.parent / "trace"
sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("trace_reader", str(SCRIPT))
reader = importlib.util.module_from_spec(importlib.util.spec_from_loader("trace_reader", loader))
sys.modules["trace_reader"] = reader
loader.exec_module(reader)

TDR, TDVPR, PAGE = 0x3D56000, 0x7C4000, 0x6A2000
BUSY_TDR, BUSY_RDX = 0x8000020000000080, 0x8000020000000002


def line(time, text, cpu=0, task="tdxvm-53", flags="....."):
    return f"{task:>16}      [{cpu:03}] {flags} {time:>12}: {text}"


def seamcall(time, name, leaf=0, status=0, locks="-", ticks=1000, version=0, cpu=0, task="tdxvm-53", flags="d..1.", **registers):
    known = {"rcx": 0, "rdx": 0, "r8": 0, "r9": 0, "out_rcx": 0, "out_rdx": 0, "out_r8": 0, **registers}
    shown = {key: f"{key}={value:#x}" for key, value in known.items()}
    return line(
        time,
        f"seamcall: leaf={leaf} version={version} name={name} {shown['rcx']} {shown['rdx']} {shown['r8']} {shown['r9']}"
        f" rax={status:#x} lp={cpu} locks={locks} ticks={ticks} {shown['out_rcx']} {shown['out_rdx']} {shown['out_r8']}",
        cpu, task, flags,
    )  # fmt: skip


def acquire(time, address, name, how="", **where):
    return line(time, f"lock_acquire: {address:016x} {how}{name}", **where)


def release(time, address, name, **where):
    return line(time, f"lock_release: {address:016x} {name}", **where)


def printed(lines, everything=False):
    out = io.StringIO()
    reader.Printer(reader.Trace(lines), out, everything).all()
    return out.getvalue()


KVM, VCPU, SLOTS = 0xFFFF8880030B73A8, 0xFFFF8880031200A8, 0xFFFF8880030B60A0
OTHER = {"cpu": 1, "task": "tdx bad-60"}

# One task sets up a TD under the guard, another wants kvm->lock and has to wait.
RACE = [
    "# tracer: nop",
    "#",
    line(1000, "tracing_mark_write: a race"),
    seamcall(1500, "MNG.CREATE", 9, rcx=TDR, rdx=33, locks=f"PAMT_1G(0x0):SH,PAMT_2M(0x3c00000):SH,PAMT_4K({TDR:#x}):EX,KOT:EX"),
    line(2000, "sys_enter: NR 16 (5, c008aeba, 7ffd, 0, 0, 0)"),
    acquire(2100, KVM, "&kvm->lock"),
    line(2110, f"contention_begin: {KVM - 0x60:016x} (flags=SPIN|MUTEX)", flags="...1."),
    line(2120, f"contention_end: {KVM - 0x60:016x} (ret=0)", flags="...1."),
    acquire(2200, VCPU, "&vcpu->mutex"),
    acquire(2300, SLOTS, "&kvm->slots_lock"),
    line(2400, "sys_enter: NR 16 (6, ae41, 1, 0, 0, 0)", **OTHER),
    acquire(2500, KVM, "&kvm->lock", **OTHER),
    line(2510, f"contention_begin: {KVM - 0x60:016x} (flags=MUTEX)", **OTHER),
    seamcall(5000, "VP.CREATE", 10, rcx=TDVPR, rdx=TDR, locks=f"PAMT_4K({TDR:#x}):SH,OP_STATE({TDR:#x}):SH,PAMT_4K({TDVPR:#x}):EX"),
    release(6000, SLOTS, "&kvm->slots_lock"),
    release(6100, VCPU, "&vcpu->mutex"),
    release(6200, KVM, "&kvm->lock"),
    line(6300, "sys_exit: NR 16 = 0"),
    line(6400, f"contention_end: {KVM - 0x60:016x} (ret=0)", **OTHER),
    release(7000, KVM, "&kvm->lock", **OTHER),
    line(7100, "sys_exit: NR 16 = -17", **OTHER),
]


class Lines(unittest.TestCase):
    def test_events(self):
        for text, expected in [
            (" tdx bad-x-60    [001] d.h1.   2500: lock_release: ffff88 &x", ("tdx bad-x", 60, 1, 2500, "lock_release", True)),
            ("          <idle>-0     [000] ..s1.     12: seamcall: leaf=1", ("<idle>", 0, 0, 12, "seamcall", True)),
            ("   sh-52      [001] .....   12.345678: sys_enter: NR 16 (", ("sh", 52, 1, 12345678000, "sys_enter", False)),
            ("   sh-52  (     52) [001] .....   7: a: b", ("sh", 52, 1, 7, "a", False)),
            ("   sh-52  [001]  7: a:", ("sh", 52, 1, 7, "a", False)),
        ]:
            event = reader.Event(reader.Event.LINE.match(text))
            self.assertEqual((event.task, event.pid, event.cpu, event.time, event.name, event.interrupt), expected)

    def test_malformed_lines_are_told(self):
        bad = [
            "nonsense",
            line(10, "seamcall: leaf=1 name=MNG.ADDCX"),
            line(11, "seamcall: leaf=x version=0 name=A rcx=0x0 rdx=0x0 r8=0x0 r9=0x0 rax=0x0 locks=- ticks=0"),
            line(12, "lock_acquire: zz &kvm->lock"),
            line(13, "lock_acquire: ffff"),
            line(14, "lock_release:"),
            line(15, "sys_exit: NR 16"),
            line(16, "sys_enter: NR 16 (5"),
            line(17, "sys_enter: "),
            line(18, "contention_begin: ?"),
        ]
        trace = reader.Trace(bad + RACE)
        self.assertEqual([count for count, _, _ in sorted(trace.bad)], list(range(1, len(bad) + 1)))
        self.assertEqual(len(trace.calls), 2)
        self.assertIn("10 lines could not be read", printed(bad + RACE))
        self.assertNotIn("could not be read", printed(RACE))

    def test_unknown_events_are_none_of_our_business(self):
        trace = reader.Trace([line(1, "sched_switch: prev_comm=a"), line(2, "sys_enter: NR 0 (1, 2, 3, 4, 5, 6)"), line(3, "sys_exit: NR 0 = 1")])
        self.assertEqual((trace.bad, trace.ioctls), ([], []))

    def test_nothing(self):
        for lines in ([], ["# tracer: nop"], ["CPU:1 [LOST 7 EVENTS]"]):
            self.assertIn("0 SEAMCALLs", printed(lines))
        self.assertIn("7 EVENTS WERE LOST", printed(["CPU:1 [LOST 7 EVENTS]"]))

    def test_begins_and_ends_anywhere(self):
        for begin in range(len(RACE)):
            for end in (begin + 1, len(RACE) - begin, len(RACE)):
                lines = RACE[begin:end]
                self.assertNotIn("could not be read", printed(lines, everything=True))
                if reader.Trace(lines).calls:
                    svg(lines)


class Names(unittest.TestCase):
    def test_statuses_are_those_of_the_module(self):
        for status, leaf, name in [
            (0, "", "SUCCESS"),
            (BUSY_TDR, "", "OPERAND_BUSY|TDR"),
            (0x8000020000000092, "", "OPERAND_BUSY|SEPT_TREE"),
            (0xC000010000000000, "", "OPERAND_INVALID|RAX"),
            (0xC000030000000008, "", "PAGE_METADATA_INCORRECT|R8"),
            (0xC000010000000FFF, "", "OPERAND_INVALID|operand 4095"),
            (0xC000060800000000, "", "OP_STATE_INCORRECT"),
            (0xC000073000002016, "", "TD_VMCS_FIELD_NOT_INITIALIZED|0x2016"),
            (0x4000000180000021, "VP.ENTER", "NON_RECOVERABLE_VCPU|exit 33 failed"),
            (0x0000000000000030, "VP.ENTER", "SUCCESS|exit 48"),
            (0xDEADBEEF00000001, "", "0xdeadbeef|0x1"),
        ]:
            self.assertEqual(reader.status_name(status, leaf), name)

    def test_without_the_module_there_are_numbers(self):
        self.assertEqual(reader.read_names(Path("/nonexistent")), ({}, {}))

    def test_fields(self):
        for context, field, name in [
            ("MNG", 0x110000000000000A, "TSC_OFFSET"),
            ("MNG", 0x1310000300000005, "MRTD[5]"),
            ("MNG", 0x9410000300000000 | 7 << 9 | 2 << 1 | 1, "CPUID(0x7.2).ECX_EDX"),
            ("MNG", 0x9410000300000000 | 1 << 16 | 8 << 9 | 0x1FE, "CPUID(0x80000008).EAX_EBX"),
            ("VP", 0x2016, "POSTED_INTR_DESC"),
            ("VP", 0x9100000000000100, "VCPU_STATE_DETAILS"),
            ("SYS", 0x0A00000300000008, "TDX_FEATURES0"),
            ("SYS", 0x9900000300000502, "CPUID_CONFIG_VALUES[2]"),
            ("SYS", 0xFFFFFFFFFFFFFFFF, "(first)"),
            ("SYS", 0x3F00000000000001, "0x3f00000000000001"),
        ]:
            self.assertEqual(reader.field_name(context, field), name)

    def test_operands(self):
        trace = reader.Trace([
            seamcall(1, "MNG.CREATE", 9, rcx=TDR, rdx=33),
            seamcall(2, "MEM.PAGE.ADD", 2, rcx=0xFFC84000, rdx=TDR, r8=PAGE, r9=0x1000),
            seamcall(3, "MEM.SEPT.ADD", 3, rcx=0xC0000002, rdx=TDR, r8=PAGE),
            seamcall(4, "PHYMEM.PAGE.RECLAIM", 28, rcx=PAGE, out_rcx=5, out_rdx=TDR),
            seamcall(5, "PHYMEM.PAGE.WBINVD", 41, rcx=33 << 40 | PAGE),
            seamcall(6, "VP.WR", 43, rcx=TDVPR, rdx=2, r8=0xF2, r9=0xFFFF),
            seamcall(7, "MNG.RD", 11, rcx=TDR, rdx=0x110000000000000A, out_r8=9),
            seamcall(8, "TDH.VP.INIT", 22, version=1, rcx=TDVPR, rdx=0x809000, r8=1),
            seamcall(9, "UNKNOWN", 999, rcx=1, status=0xC000010000000000),
        ])  # fmt: skip
        shown = [trace.show_operands([call]) for call in trace.calls]
        self.assertEqual(shown, [
            "TD 0x3d56000  HKID 33",
            "GPA 0xffc84000  4K  TD 0x3d56000  page 0x6a2000  from 0x1000",
            "GPA 0xc0000000  1G  TD 0x3d56000  page 0x6a2000",
            "page 0x6a2000  was TDCX  of TD 0x3d56000",
            "page 0x6a2000  HKID 33",
            "vCPU 0x7c4000  POSTED_INTR_NV  = 0xf2  mask 0xffff",
            "TD 0x3d56000  TSC_OFFSET  = 0x9",
            "vCPU 0x7c4000  RCX 0x809000  number 1",
            "RCX 0x1",
        ])  # fmt: skip
        self.assertEqual(trace.calls[-1].name, "leaf 999")

    def test_ioctls(self):
        def name(request, *leaves):
            lines = [line(1, f"sys_enter: NR 16 (5, {request:x}, 0, 0, 0, 0)")]
            return reader.Trace(lines + [seamcall(2, leaf) for leaf in leaves]).ioctls[0].name

        self.assertEqual(name(0xC008AEBA), "KVM_MEMORY_ENCRYPT_OP")
        self.assertEqual(name(0xC008AEBA, "MNG.CREATE", "MNG.RD"), "KVM_TDX_INIT_VM")
        self.assertEqual(name(0xC008AEBA, "MNG.RD"), "KVM_TDX_GET_CPUID")
        self.assertEqual(name(0xC008AEBA, "VP.WR", "MEM.PAGE.ADD", "MR.EXTEND"), "KVM_TDX_INIT_MEM_REGION")
        self.assertEqual(name(0xAE41), "KVM_CREATE_VCPU")
        self.assertEqual(name(0xAEA3), "KVM_GET_TSC_KHZ")
        self.assertEqual(name(0x4068AEA3), "KVM_ENABLE_CAP")
        self.assertEqual(name(0x1234), "ioctl 0x1234")


class Locks(unittest.TestCase):
    def test_who_waits_for_whom(self):
        (hold,) = reader.Trace(RACE).waits()
        self.assertEqual((hold.pid, hold.name, hold.waited, hold.slept), (60, "kvm->lock", 3900, True))
        self.assertEqual((hold.waits_for.pid, hold.waits_for.ioctl.name), (53, "KVM_TDX_INIT_VCPU"))
        text = printed(RACE)
        self.assertIn("waits for kvm->lock, which tdxvm-53 has in KVM_TDX_INIT_VCPU", text)
        self.assertIn("1. at 1,500 tdx bad-60 in KVM_CREATE_VCPU waited 3,900 for kvm->lock, which tdxvm-53 had in", text)
        self.assertIn("KVM_CREATE_VCPU = EEXIST in 4,700", text)

    def test_kernels_that_check_mutexes_always_spin_first(self):
        alone = [text for text in RACE if "tdx bad" not in text]
        self.assertEqual(reader.Trace(alone).waits(), [])

    def test_without_contention_events_the_release_tells(self):
        (hold,) = reader.Trace([text for text in RACE if "contention" not in text]).waits()
        self.assertEqual(hold.got, 6200)

    def test_wait_that_a_signal_ends(self):
        killed = [text for text in RACE if "tdx bad" not in text or "2400" in text or "2500" in text]
        killed += [line(5500, f"contention_end: {KVM - 0x60:016x} (ret=-4)", **OTHER), release(5600, KVM, "&kvm->lock", **OTHER)]
        (hold,) = reader.Trace(killed).waits()
        self.assertTrue(hold.failed)
        self.assertIn("gives up on kvm->lock after 3,000", printed(killed))
        kinds, words, arrows = svg(killed)
        self.assertEqual((len(kinds["wait"]), len(kinds["guard"]), arrows), (1, 3, 0))
        self.assertIn("tdx bad-60 gives up after 3,000", words)

    def test_readers_do_not_wait_for_readers_and_attempts_do_not_wait(self):
        for how, first in (("read ", "read "), ("try ", "")):
            lines = [acquire(1, KVM, "&(kvm)->mmu_lock", first), acquire(2, KVM, "&(kvm)->mmu_lock", how, **OTHER)]
            trace = reader.Trace(lines)
            self.assertEqual(trace.waits(), [])
            self.assertEqual({hold.name for hold in trace.holds}, {"kvm->mmu_lock"})

    def test_what_looks_like_a_wait(self):
        # The same task again, and a lock that was given back although its record is late.
        again = [acquire(1, KVM, "&kvm->srcu"), acquire(2, KVM, "&kvm->srcu")]
        late = [
            acquire(1, KVM, "&kvm->lock"), acquire(10, KVM, "&kvm->lock", **OTHER),
            line(20, f"contention_end: {KVM - 0x60:016x} (ret=0)", **OTHER), release(90_000, KVM, "&kvm->lock"),
        ]  # fmt: skip
        for lines in (again, late):
            self.assertEqual(reader.Trace(lines).waits(), [])

    def test_a_lock_is_held_until_it_is_released(self):
        lines = [*RACE[:18], seamcall(6250, "MEM.TRACK", 38, rcx=TDR)]
        self.assertEqual(reader.Trace(lines).calls[-1].held, [])
        self.assertEqual(reader.Trace(RACE[:6]).held[53][0].name, "kvm->lock")

    def test_order_of_lines_does_not_matter(self):
        # Those of a time in the order in which they are, as a trace has them.
        self.assertEqual(printed(list(reversed(RACE))), printed(RACE))

    def test_contention_of_another_lock_does_not_matter(self):
        lines = [*RACE[:6], line(2105, "contention_end: ffffffff81b56550 (ret=0)"), *RACE[8:]]
        self.assertEqual(next(hold for hold in reader.Trace(lines).holds if hold.pid == 53).waited, 0)

    def test_what_a_seamcall_is_under(self):
        trace = reader.Trace(RACE)
        create = trace.calls[1]
        self.assertEqual([hold.name for hold in create.held], ["kvm->lock", "vcpu->mutex", "kvm->slots_lock"])
        self.assertEqual(create.roles, ("TDR:SH", "OP_STATE:SH", "TDVPR:EX"))
        self.assertIn("under the guard (kvm, 1 vCPU) 2,880", printed(RACE))

    def test_interrupts_hold_nothing(self):
        lines = [*RACE[:9], seamcall(2350, "PHYMEM.CACHE.WB", 40, flags="d.h1."), *RACE[9:]]
        call = next(call for call in reader.Trace(lines).calls if call.leaf == 40)
        self.assertEqual((call.held, call.ioctl), ([], None))
        self.assertIn("in an interrupt", printed(lines))

    def test_tasks_move(self):
        lines = [acquire(10, KVM, "&kvm->lock"), line(20, "x:", cpu=1), release(30, KVM, "&kvm->lock", cpu=1)]
        trace = reader.Trace(lines)
        (hold,) = trace.holds
        self.assertEqual(trace.pieces(hold), [(0, 10, 20), (1, 20, 30)])
        self.assertEqual(trace.pieces(hold, 20, 30), [(1, 20, 30)])
        self.assertEqual((trace.pieces(hold, 20, 20), trace.pieces(hold, 15, 15)), ([(1, 20, 20)], [(0, 15, 15)]))


class Runs(unittest.TestCase):
    def test_runs(self):
        lines = [seamcall(10 + n, "MR.EXTEND", 16, rcx=0x1000 + 256 * n, rdx=TDR) for n in range(16)]
        text = printed(lines)
        self.assertEqual(len(re.findall("MR.EXTEND ", text)), 2)
        self.assertRegex(text, r"MR\.EXTEND ×16 +GPA 0x1000\.\.0x2000  TD 0x3d56000  SUCCESS")

    def test_cycles(self):
        lines = []
        for page in range(5):
            lines += [seamcall(1000 * page + 1, "MEM.PAGE.ADD", 2, rcx=page << 12, rdx=TDR)]
            lines += [seamcall(1000 * page + 2 + n, "MR.EXTEND", 16, rcx=(page << 12) + 256 * n, rdx=TDR) for n in range(16)]
        lines += [seamcall(9000, "MR.FINALIZE", 17, rcx=TDR)]
        found = reader.all_cycles(reader.Trace(lines).calls)
        self.assertEqual([(len(cycle.rounds), cycle.count) for cycle in found], [(5, 85), (1, 1)])
        text = printed(lines)
        self.assertRegex(text, r"╭ MEM\.PAGE\.ADD +GPA 0x0\.\.0x5000")
        self.assertRegex(text, r"╰ MR\.EXTEND ×16 +GPA 0x0\.\.0x5000")
        self.assertIn("these 2 in turn, 5 times", text)

    def test_what_differs_stays_apart(self):
        calls = reader.Trace([
            seamcall(1, "MNG.KEY.CONFIG", 8, rcx=TDR), seamcall(2, "MNG.KEY.CONFIG", 8, rcx=TDR + 0x1000),
            seamcall(3, "MEM.TRACK", 38, rcx=TDR), seamcall(4, "MEM.TRACK", 38, rcx=TDR, status=BUSY_RDX),
            seamcall(5, "MEM.TRACK", 38, rcx=TDR, cpu=1, task="tdx bad-60"),
        ]).calls  # fmt: skip
        self.assertEqual([cycle.count for cycle in reader.all_cycles(calls)], [1, 1, 1, 1, 1])

    def test_outside_of_an_ioctl_runs_end_soon(self):
        lines = [seamcall(time, "VP.FLUSH", 18, flags="d.h1.") for time in (10_000, 20_000, 9_000_000)]
        self.assertEqual([cycle.count for cycle in reader.all_cycles(reader.Trace(lines).calls)], [2, 1])

    def test_pages_are_not_what_they_were(self):
        lines = [
            seamcall(1, "VP.CREATE", 10, rcx=TDVPR, rdx=TDR),
            seamcall(2, "PHYMEM.PAGE.RECLAIM", 28, rcx=TDVPR, out_rcx=6, locks=f"PAMT_4K({TDVPR:#x}):EX,PAMT_4K({TDR:#x}):SH"),
            seamcall(3, "VP.ADDCX", 4, rcx=TDVPR, locks=f"PAMT_4K({TDVPR:#x}):EX"),
        ]
        calls = reader.Trace(lines).calls
        self.assertEqual([call.roles for call in calls[1:]], [("TDVPR:EX", "TDR:SH"), ("page 4K:EX",)])

    def test_reads_with_and_without_an_answer_are_one_run(self):
        lines = [seamcall(n, "MNG.RD", 11, rcx=TDR, rdx=0x9410000300000000 + n, status=n % 2 * 0xC0000C0000000000) for n in range(1, 8)]
        self.assertIn("METADATA_FIELD_ID_INCORRECT ×4, SUCCESS ×3", printed(lines))

    def test_sums(self):
        lines = [seamcall(n, "MEM.TRACK", 38, ticks=n * 100, status=0 if n < 3 else BUSY_RDX) for n in range(1, 4)]
        self.assertRegex(printed(lines), r"MEM\.TRACK +3 +1 +100 +200 +300\n")


def svg(lines, *options):
    """The picture of a trace: its elements' classes and its words."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder, "trace"), Path(folder, "out.svg")
        file.write_text("\n".join(lines) + "\n")
        done = subprocess.run([sys.executable, SCRIPT, "svg", file, out, *options], capture_output=True, text=True, check=False)
        if done.returncode:
            return done.stderr
        root = ElementTree.parse(out).getroot()
    name = "{http://www.w3.org/2000/svg}"
    kinds = {}
    for rect in root.iter(f"{name}rect"):
        if rect.find(f"{name}title") is not None:
            kinds.setdefault(rect.get("class"), []).append((float(rect.get("x")), float(rect.get("y")), float(rect.get("width"))))
    return kinds, [text.text or "" for text in root.iter(f"{name}text")], len(root.findall(f"{name}path"))


BUSY = [
    *RACE[:-1],
    seamcall(30_000, "VP.INIT", 22, ticks=9000, rcx=TDVPR, locks=f"PAMT_4K({TDVPR:#x}):EX,PAMT_4K({TDR:#x}):EX"),
    seamcall(28_000, "MNG.RD", 11, ticks=300, rcx=TDR, status=BUSY_TDR, cpu=1, task="tdx bad-60"),
    line(40_000, "sys_exit: NR 16 = -16", **OTHER),
]


class Pictures(unittest.TestCase):
    def test_wait(self):
        kinds, words, arrows = svg(RACE)
        self.assertEqual((len(kinds["ioctl"]), len(kinds["wait"]), len(kinds["guard"]), arrows), (2, 1, 4, 1))
        self.assertNotIn("busy", kinds)
        for word in ("CPU 0", "CPU 1", "VP.CREATE", "kvm->lock", "vcpu->mutex", "kvm->slots_lock", "BUSY: lost a race, arrow from who had the lock"):
            self.assertIn(word, words)
        # It waits as long as the other holds, and gets the lock after that.
        (wait,) = kinds["wait"]
        later = [bar for bar in kinds["guard"] if bar[1] == wait[1]]
        self.assertEqual(len(later), 1)
        self.assertAlmostEqual(wait[0] + wait[2], later[0][0], delta=0.2)

    def test_lost_race_is_red(self):
        kinds, words, arrows = svg(BUSY)
        self.assertEqual((len(kinds["busy"]), arrows), (1, svg(RACE)[2] + 1))
        self.assertIn("MNG.RD OPERAND_BUSY|TDR", words)
        self.assertIn("TDR:EX", words)
        self.assertIn("MNG.RD on CPU 1: OPERAND_BUSY|TDR, against VP.INIT on CPU 0, which has TDR:EX", words)
        self.assertIn("OPERAND_BUSY|TDR against VP.INIT of tdxvm-53 on CPU 0, which had TDR:EX", printed(BUSY))

    def test_who_had_it(self):
        locks = (
            "GLOBAL:EX,KOT:EX,PAMT_4K(0x5000):EX,PAMT_4K({0:#x}):SH,SEPT_TREE({0:#x}):EX,TD_EPOCH({0:#x}):EX,"
            "SEPT_ENTRY(0x7000):EX,PAMT_2M(0x200000):EX,PAMT_2M(0x400000):SH".format(TDR)
        )
        for status, registers, role in (
            (0x8000020200000000, {}, "GLOBAL:EX"),
            (0x80000200000000BA, {}, "KOT:EX"),
            (0x8000020000000092, {}, "SEPT_TREE:EX"),
            (0x80000200000000A9, {}, "TD_EPOCH:EX"),
            (0x8000020000000008, {"r8": 0x5000}, "page 4K:EX"),
            (0x8000020000000002, {"rdx": TDR}, "TDR:SH"),
            (0x8000020000000001, {"rcx": 0x7000}, "SEPT_ENTRY:EX"),
            (0x8000020000000001, {"rcx": 0x9000}, None),
            (0x8000020000000080, {}, "TDR:SH"),
            (0x8000020000000008, {"r8": 0x201000}, "page 2M:EX"),
            (0x8000020000000008, {"r8": 0x401000}, None),
            (0x8000020000000008, {"r8": 0x400000}, "page 2M:SH"),
        ):
            lost = seamcall(28_000, "MEM.PAGE.AUG", 6, ticks=300, status=status, cpu=1, task="tdx bad-60", **registers)
            gone = seamcall(50_000, "PHYMEM.PAGE.RECLAIM", 28, rcx=TDR)
            trace = reader.Trace([*RACE[:-1], seamcall(30_000, "SYS.X", 99, ticks=9000, locks=locks), lost, gone])
            (busy,) = [call for call in trace.calls if call.busy]
            self.assertEqual([found for _, found in trace.holders(busy)], [role] if role else [])

    def test_a_wait_for_another_cpu_comes_first(self):
        long = [
            acquire(20_000, SLOTS, "&kvm->slots_lock"), acquire(20_100, SLOTS, "&kvm->slots_lock", task="third-7"),
            release(90_000, SLOTS, "&kvm->slots_lock"), release(91_000, SLOTS, "&kvm->slots_lock", task="third-7"),
        ]  # fmt: skip
        waits = reader.Trace(RACE + long).waits()
        self.assertEqual([hold.waited for hold in waits], [3900, 69_900])
        self.assertIn("KVM_CREATE_VCPU waits for kvm->lock, which KVM_TDX_INIT_VCPU has", svg(RACE + long)[1])
        self.assertIn("third-7 waits for kvm->slots_lock, which tdxvm-53 has", svg(long + RACE[3:4])[1])

    def test_only_other_cpus_are_in_the_way(self):
        near = [
            seamcall(27_000, "MEM.TRACK", 38, locks=f"PAMT_4K({TDR:#x}):SH", cpu=1, task="tdx bad-60"),
            seamcall(90_000, "MEM.TRACK", 38, locks=f"PAMT_4K({TDR:#x}):SH"),
        ]
        trace = reader.Trace(BUSY + near)
        (busy,) = [call for call in trace.calls if call.busy]
        self.assertEqual([call.name for call in trace.conflicts(busy)], ["VP.INIT"])

    def test_runs_have_the_colour_of_most(self):
        for refused, kind in ((1, "call"), (2, "refused")):
            lines = [seamcall(1000 * n, "MNG.RD", 11, status=(n <= refused) * 0xC0000C0000000000) for n in range(1, 4)]
            self.assertEqual(list(svg(lines)[0]), [kind])

    def test_what_overlaps_on_one_cpu_has_rows_of_its_own(self):
        together = [text.replace("[001]", "[000]") for text in RACE]
        kinds, _, _ = svg(together)
        self.assertEqual(len({y for _, y, _ in kinds["ioctl"]}), 2)
        self.assertNotIn(kinds["wait"][0][1], {y for x, y, _ in kinds["guard"] if x < kinds["wait"][0][0]})
        apart = [y for _, y, _ in svg([*RACE[:18], line(7000, "sys_enter: NR 16 (5, c008aeba, 0, 0, 0, 0)"), seamcall(8000, "MR.FINALIZE", 17)])[0]["ioctl"]]
        self.assertEqual((len(apart), len(set(apart))), (3, 2))

    def test_it_is_wide_enough_to_read(self):
        kinds, _, _ = svg(RACE)
        bars = [bar for bars in kinds.values() for bar in bars]
        self.assertGreater(max(x + width for x, _, width in bars) - min(x for x, _, _ in bars), 900)

    def test_choices(self):
        for options in (["--wait", "1"], ["--note", "a race"], ["--from", "0", "--to", "5000"], ["--linear"], ["--linear", "500"]):
            self.assertIn("ioctl", svg(RACE, *options)[0], options)
        for options, why in [
            (["--wait", "2"], "the trace has 1"), (["--busy", "1"], "the trace has 0"), (["--wait", "0"], "the trace has 1"),
            (["--note", "nope"], "no note"), (["--from", "7", "--to", "7"], "nothing between"),
        ]:  # fmt: skip
            self.assertIn(why, svg(RACE, *options), options)
        self.assertIn("neither SEAMCALLs nor locks", svg(["# nothing"]))

    def test_what_is_long_is_cut(self):
        leaves = ("VP.WR", "MEM.TRACK", "MNG.RD")
        lines = [seamcall(10_000 * n, leaves[n * n % 3 if n % 7 else 2], rcx=TDR + n * 4096) for n in range(1, 800)]
        kinds, _, _ = svg(lines)
        self.assertLess(len(kinds["call"]), 800)


class WholeProgram(unittest.TestCase):
    def run_script(self, *arguments, **options):
        return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False, **options)

    def test_a_jobs_output(self):
        text = "\n".join(RACE) + "\n"
        packed = base64.encodebytes(gzip.compress(text.encode())).decode().split()
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "job.log")
            log.write_text("for people\r\n" + "".join(f"@trace.gz {part}\r\n" for part in packed) + "JOB-EXIT 0\r\n")
            self.assertEqual(self.run_script("text", log).stdout, text)
            self.assertIn("2 SEAMCALLs", self.run_script("print", log).stdout)
            # Broken off.
            log.write_text("".join(f"@trace.gz {part}\n" for part in packed[: len(packed) // 2]))
            done = self.run_script("print", log)
            self.assertEqual((done.returncode, "broken off" in done.stderr), (1, True), done.stderr)
            log.write_text("".join(f"@trace {part}\n" for part in RACE))
            self.assertEqual(self.run_script("text", log).stdout, text)

    def test_standard_input(self):
        self.assertIn("2 SEAMCALLs", self.run_script("print", "-", input="\n".join(RACE)).stdout)

    def test_no_file(self):
        done = self.run_script("print", "/nonexistent/trace")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, "^error: cannot read")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "trace")
            file.write_text("\n".join(RACE))
            self.assertRegex(self.run_script("svg", file, Path(folder, "no", "folder")).stderr, "^error: cannot write")


if __name__ == "__main__":
    unittest.main()
