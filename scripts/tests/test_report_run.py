# SPDX-License-Identifier: GPL-2.0
"""The report of a run: what it takes for everything to hold."""

import copy
import importlib.machinery
import importlib.util
import json
from pathlib import Path
import subprocess
import sys
import tempfile
import unittest

SCRIPT = Path(__file__).resolve().parent.parent / "report-run"
LOADER = importlib.machinery.SourceFileLoader("report_run", str(SCRIPT))
report_run = importlib.util.module_from_spec(importlib.util.spec_from_loader("report_run", LOADER))
sys.dont_write_bytecode, keep = True, sys.dont_write_bytecode
LOADER.exec_module(report_run)
sys.dont_write_bytecode = keep

MRTD = "ab" * 48
CHAIN = "&kvm->lock &vcpu->mutex &kvm->slots_lock"


def step(name, calls=1, result="ok"):
    return {"name": name, "detail": "", "result": result, "calls": calls, "resumed": 0, "ticks": 1000, "microseconds": 1}


TDXVM = {
    "vcpus": 2, "memory": 256 << 20, "runs": 1, "tsc_khz": 100000, "attributes": "0x0", "xfam": "0x3",
    "steps": [step("KVM_CREATE_VM"), step("KVM_TDX_INIT_VM"), step("KVM_TDX_GET_CPUID"),
              step("KVM_TDX_INIT_MEM_REGION", 3), step("KVM_TDX_FINALIZE_VM")],
    "sections": [], "pages_added": 10, "pages_measured": 4, "mrtd_expected": MRTD, "mrtd_module": MRTD,
    "mrtd_agrees": True, "ok": True,
}  # fmt: skip
PARTS = {
    "uname": ["Linux 7.3.4 #1 SMP x86_64"],
    "tdx_rust": ["Y"],
    "tainted": ["262144"],
    "lockdep_stats": [" debug_locks:                             1"],
    "bringup": ["virt/tdx: TDX-Module initialized"],
    "served-before": ["rust=1 c=2"],
    "served-after": ["rust=8 c=2"],
    "leaves-before": ["SYS.RD 34 70 0", "MNG.CREATE 9 1 0"],
    "leaves-after": [
        "SYS.RD 34 70 0", "MNG.CREATE 9 2 0", "MNG.INIT 21 1 0", "VP.CREATE 10 2 0", "VP.INIT 22 2 0",
        "MEM.PAGE.ADD 2 10 0", "MR.EXTEND 16 64 0", "MR.FINALIZE 17 1 0", "MNG.RD 11 90 12",
    ],
    "accounting-before": ["pages_tdr 0", "hkids 0"],
    "accounting-after": ["pages_tdr 0", "hkids 0"],
    "lockdep": [f"      7 {CHAIN}", "      3 &kvm->lock &kvm->slots_lock"],
}  # fmt: skip
BOOT = {"splats": [], "timed_out": False}


def failing(change=lambda parts, tdxvm, boot: None, status=0):
    """The checks that fail after a change to a run in which all hold."""
    parts, tdxvm, boot = copy.deepcopy((PARTS, TDXVM, BOOT))
    change(parts, tdxvm, boot)
    parts["tdxvm"] = json.dumps(tdxvm, indent=1).splitlines()
    run = report_run.Run(parts, status, boot)
    run.check_all()
    json.dumps(run.as_json())
    return [check["name"] for check in run.checks if not check["ok"]]


class Report(unittest.TestCase):
    def test_all_holds(self):
        self.assertEqual(failing(), [])

    def test_what_fails(self):
        def changes(part, lines):
            return lambda parts, tdxvm, boot: parts.update({part: lines})

        for change, names in [
            (lambda parts, tdxvm, boot: boot.clear(), ["kernel"]),
            (lambda parts, tdxvm, boot: boot.update(splats=["WARNING: x"]), ["kernel"]),
            (lambda parts, tdxvm, boot: boot.update(timed_out=True), ["kernel"]),
            (changes("tainted", ["262656"]), ["kernel"]),
            (changes("lockdep_stats", [" debug_locks:    0"]), ["kernel"]),
            (changes("lockdep_stats", []), ["kernel"]),
            (changes("bringup", ["virt/tdx: BIOS enabled"]), ["bring-up"]),
            (changes("served-after", ["rust=1 c=9"]), ["served"]),
            (changes("served-after", ["rust=7 c=3"]), ["served"]),
            (changes("served-after", []), ["served"]),
            (changes("tdx_rust", ["N"]), ["served"]),
            (changes("leaves-after", PARTS["leaves-after"][:-3]), ["SEAMCALLs"]),
            (changes("leaves-after", []), ["SEAMCALLs"]),
            (lambda parts, tdxvm, boot: tdxvm.update(mrtd_agrees=None), ["MRTD"]),
            (lambda parts, tdxvm, boot: tdxvm.update(mrtd_agrees=False, ok=False), ["ioctls", "MRTD"]),
            (lambda parts, tdxvm, boot: tdxvm.update(pages_added=11), ["SEAMCALLs"]),
            (lambda parts, tdxvm, boot: tdxvm["steps"][0].update(result="EIO"), ["ioctls"]),
            (lambda parts, tdxvm, boot: tdxvm["steps"].pop(), ["ioctls", "served"]),
            (changes("lockdep", []), ["lock order"]),
            (changes("lockdep", PARTS["lockdep"][1:]), ["lock order"]),
            (changes("lockdep", PARTS["lockdep"] + ["1 &kvm->slots_lock &vcpu->mutex"]), ["lock order"]),
            (changes("accounting-after", ["pages_tdr 1", "hkids 0"]), ["left over"]),
            (changes("tds-after", ["tdr=0x1000"]), ["left over"]),
        ]:
            with self.subTest(names):
                self.assertEqual(failing(change), names)
        self.assertEqual(failing(status=1), ["job"])
        self.assertEqual(failing(status=None), ["job"])

    def test_c_can_be_asked_for(self):
        def by_c(parts, tdxvm, boot):
            parts.update({"tdx_rust": ["N"], "served-after": ["rust=1 c=9"]})

        self.assertEqual(failing(by_c), [])

    def test_whole_program(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            parts = {**PARTS, "tdxvm": json.dumps(TDXVM, indent=1).splitlines()}
            lines = [f"@{name} {line}" for name, text in parts.items() for line in text]
            log, boot, out = folder / "job.log", folder / "outcome.json", folder / "out.json"
            boot.write_text(json.dumps(BOOT))
            for exit_line, good in [("JOB-EXIT 0", True), ("JOB-EXIT 1", False), ("", False)]:
                log.write_text("\r\n".join(lines + ["for people", exit_line]) + "\n")
                done = subprocess.run(
                    [sys.executable, SCRIPT, "--log", log, "--boot", boot, "--out", out],
                    capture_output=True, text=True, check=False,
                )  # fmt: skip
                self.assertEqual(done.returncode, 0 if good else 1, done.stderr)
                self.assertEqual(json.loads(out.read_text())["ok"], good)
                verdict = [line for line in done.stdout.splitlines() if line.startswith(("OK: ", "FAILED: "))]
                self.assertEqual(len(verdict), 1)

    def test_nothing_at_all(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            command = [sys.executable, SCRIPT, "--log", folder / "log", "--boot", folder / "boot", "--out", folder / "out"]
            self.assertNotEqual(subprocess.run(command, capture_output=True, check=False).returncode, 0)
            (folder / "log").write_text("@tdxvm {broken\n")
            self.assertEqual(subprocess.run(command, capture_output=True, check=False).returncode, 1)


if __name__ == "__main__":
    unittest.main()
