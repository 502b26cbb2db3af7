# SPDX-License-Identifier: GPL-2.0
"""The report of a benchmark: what is required, and that a miss is noticed."""

import contextlib
import importlib.machinery
import importlib.util
import io
from pathlib import Path
import sys
import tempfile
import unittest

SCRIPT = Path(__file__).resolve().parent.parent / "report-bench"
LOADER = importlib.machinery.SourceFileLoader("report_bench", str(SCRIPT))
report_bench = importlib.util.module_from_spec(importlib.util.spec_from_loader("report_bench", LOADER))
sys.modules["report_bench"] = report_bench
sys.dont_write_bytecode, keep = True, sys.dont_write_bytecode
LOADER.exec_module(report_bench)
sys.dont_write_bytecode = keep

SEAMCALLS = """\
@seamcall SHA-384 - core 3000 0x0 1
@seamcall SHA-384 - core 6000 0x0 2
@seamcall MNG.RD checks trap {check} 0x0 reads
@seamcall MNG.RD checks core 900 0x0 reads
@seamcall MR.EXTEND works trap {extend} 0x0 works
@seamcall MR.EXTEND works core 12000 0x0 works
@traced       4 MNG.RD 0x0 800 PAMT_1G:SH,PAMT_2M:SH,PAMT_4K:SH,OP_STATE:SH
"""
COUNTS = """\
@count ioctl FINALIZE_VM c 800 700
@count function ioctl FINALIZE_VM c 1000 800
@count ioctl FINALIZE_VM rust {rust} {stack}
@count function ioctl FINALIZE_VM rust 2000 {rust}
@count guard 1 c 500 100
@count guard 1 rust {guard} 100
@count guard 1 mutexes 90 40
"""


def lines(check=1500, extend=13000, rust=790, stack=700, guard=499):
    text = SEAMCALLS + COUNTS
    return text.format(check=check, extend=extend, rust=rust, stack=stack, guard=guard)


def verdicts(text):
    """Returns {requirement: whether it holds}."""
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.log"
        job.write_text(text)
        parts = report_bench.read_job(job)
    report = report_bench.Report()
    with contextlib.redirect_stdout(io.StringIO()):
        report_bench.seamcalls(report, parts)
        counts, functions = report_bench.read_counts(parts.get("count", []))
        report_bench.guard(report, counts, functions, {})
        report_bench.ioctls(report, counts, functions, {0x1000: "c_function", 0x2000: "_RNv4rust8function"})
    return report, {verdict["requirement"]: verdict["holds"] for verdict in report.verdicts}


class Requirements(unittest.TestCase):
    def test_all_hold(self):
        report, held = verdicts(lines())
        self.assertEqual(len(held), 5)
        self.assertTrue(all(held.values()), held)
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(report_bench.conclude(report), 0)

    def test_each_miss_is_noticed(self):
        for change, missed in (
            ({"check": 2000}, "a SEAMCALL that only checks costs under 2,000"),
            ({"extend": 18000}, "SHA-384 is most of MR.EXTEND"),
            ({"rust": 801}, "KVM_TDX_FINALIZE_VM costs at most what C's does"),
            ({"stack": 708}, "KVM_TDX_FINALIZE_VM needs at most C's stack"),
            ({"guard": 501}, "the guard of 1 vCPUs costs at most what C's does"),
        ):
            report, held = verdicts(lines(**change))
            self.assertEqual([name for name, holds in held.items() if not holds], [missed])
            with contextlib.redirect_stdout(io.StringIO()):
                self.assertEqual(report_bench.conclude(report), 1)

    def test_nothing_measured_is_a_failure(self):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            self.assertEqual(report_bench.conclude(report_bench.Report()), 1)

    def test_a_benchmark_that_broke_off_is_a_failure(self):
        with self.assertRaises(SystemExit):
            verdicts("@seamcall a call did not end as it should\n")


class Reading(unittest.TestCase):
    def test_locks_on_the_way_are_left_out(self):
        report, _ = verdicts(lines())
        [read] = [call for call in report.data["seamcalls"] if call["leaf"] == "MNG.RD"]
        self.assertEqual(report_bench.short_locks(read["locks"]), "4K:SH OP_STATE:SH")
        self.assertEqual((read["held"], read["core"], read["calls"]), (800, 900, 2))

    def test_rust_names_are_readable(self):
        self.assertEqual(report_bench.short_name("memcpy"), "memcpy")
        self.assertEqual(report_bench.short_name("_RNv4rust8function"), "rust::function")


if __name__ == "__main__":
    unittest.main()
