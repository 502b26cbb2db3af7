# SPDX-License-Identifier: GPL-2.0
"""How consoles and (K)TAP are read."""

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
import sys
import unittest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "machine"))

from console import Console  # noqa: E402
from ktap import Summary  # noqa: E402

LOADER = SourceFileLoader("boot", str(Path(__file__).resolve().parent.parent / "machine" / "boot"))
boot = module_from_spec(spec_from_loader("boot", LOADER))
LOADER.exec_module(boot)


def read(text):
    summary = Summary()
    for line in text.strip("\n").split("\n"):
        summary.line(line)
    return summary.end()


class Ktap(unittest.TestCase):
    def test_flat(self):
        summary = read("TAP version 13\n1..3\nok 1 a\nnot ok 2 b\nok 3 c # SKIP no TDX")
        self.assertEqual((summary.passed, summary.failed, summary.skipped), (1, ["b"], ["c"]))
        self.assertEqual(summary.problems, [])

    def test_nested_counts_leaves(self):
        summary = read(
            "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: suite\n    1..2\n"
            "    ok 1 one\n    ok 2 two\n# suite: pass:2 fail:0\nok 1 suite"
        )
        self.assertEqual((summary.passed, summary.failed), (2, []))
        self.assertEqual(summary.names, ["one", "two"])

    def test_suite_that_fails_by_itself(self):
        summary = read("1..1\n    1..1\n    ok 1 one\nnot ok 1 suite")
        self.assertEqual((summary.passed, summary.failed), (1, ["suite"]))

    def test_failure_inside_counts_once(self):
        summary = read("1..1\n    1..2\n    ok 1 one\n    not ok 2 two\nnot ok 1 suite")
        self.assertEqual((summary.passed, summary.failed), (1, ["two"]))

    def test_missing_results(self):
        self.assertTrue(read("1..3\nok 1 a\nok 2 b").problems)
        self.assertTrue(read("1..1\n    1..2\n    ok 1 one\nok 1 suite").problems)

    def test_plan_that_skips_all(self):
        summary = read("TAP version 13\n1..0 # SKIP no /dev/kvm")
        self.assertEqual((summary.passed, len(summary.skipped)), (0, 1))


class Splats(unittest.TestCase):
    def assert_splats(self, line, count=1, **kwargs):
        console = Console(**kwargs)
        console.line(line)
        self.assertEqual(len(console.splats), count, line)

    def test_what_fails_a_run(self):
        for line in (
            "[    1.000000] WARNING: CPU: 0 PID: 1 at arch/x86/kvm/vmx/tdx.c:100 tdx_td_init+0x1/0x2",
            "[    1.000000] WARNING: possible recursive locking detected",
            "[    1.000000] WARNING: possible circular locking dependency detected",
            "[    1.000000] WARNING: suspicious RCU usage",
            "[    1.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "[    1.000000] BUG: sleeping function called from invalid context at kernel/x.c:1",
            "[    1.000000] INFO: task tdxvm:99 blocked for more than 120 seconds.",
            "[    1.000000] INFO: trying to register non-static key.",
            "[    1.000000] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "[    1.000000] DEBUG_LOCKS_WARN_ON(1)",
            "[    1.000000] Kernel panic - not syncing: Attempted to kill init!",
            "[    1.000000] Oops: general protection fault, 0000 [#1] SMP",
            "[    1.000000] rust_kernel: panicked at arch/x86/kvm/vmx/tdx/ioctl.rs:1:1",
            "[    1.000000] BUG: KASAN: slab-use-after-free in tdx_vm_ioctl+0x1/0x2",
            "[    1.000000] BUG: KCSAN: data-race in tdx_vm_ioctl / tdx_vcpu_load",
            "[    1.000000] UBSAN: shift-out-of-bounds in arch/x86/kvm/vmx/tdx.c:100:1",
            "[    1.000000] UBSAN: array-index-out-of-bounds in arch/x86/kvm/vmx/tdx.c:100:1",
            "[    1.000000] kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "[    1.000000] kmemleak: Kernel memory leak detector disabled",
        ):
            self.assert_splats(line)

    def test_what_does_not(self):
        for line in (
            "[    1.000000] virt/tdx: TDX-Module initialized",
            "[    1.000000] Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar",
            "[    1.000000] FAULT_INJECTION: forcing a failure.",
            "[    1.000000] Spectre V2 : Mitigation: Retpolines",
            "[    1.000000] NMI watchdog: Enabled.",
            "[    1.000000] kvm_intel: VMX supported",
            "[    1.000000] KernelAddressSanitizer initialized",
            "[    1.000000] kcsan: enabled early",
            "[    1.000000] kcsan: strict mode configured",
            "[    1.000000] kmemleak: Kernel memory leak detector initialized (mem pool available: 13886)",
        ):
            self.assert_splats(line, count=0)

    def test_allowed_by_the_job(self):
        faults = boot.allowed("faults")
        self.assert_splats("[    1.0] WARNING: arch/x86/kvm/vmx/tdx.c:1 at x+0x1/0x2", count=0, allowed=faults)
        self.assert_splats("[    1.0] WARNING: arch/x86/kvm/x86.c:1 at x+0x1/0x2", allowed=faults)
        self.assertEqual(boot.allowed("run"), [])

    def test_allowed(self):
        self.assert_splats("[    1.0] WARNING: it is meant", count=0, allowed=["it is meant"])

    def test_expected_comes_once(self):
        console = Console(expected=["it has to be", "it never comes"])
        for line in ("[    1.0] WARNING: it has to be", "[    1.1] WARNING: it has to be", "[    1.2] BUG: it is not"):
            console.line(line)
        self.assertEqual([splat[0] for splat in console.splats], ["[    1.1] WARNING: it has to be"])
        self.assertEqual(len(console.splats[0]), 2)
        self.assertEqual(console.missing, ["it never comes"])

    def test_context_and_panic(self):
        console = Console()
        for line in ("[    1.5] Kernel panic - not syncing: x", "[    1.6] Call Trace:"):
            console.line(line)
        self.assertTrue(console.panicked)
        self.assertEqual(len(console.splats[0]), 2)
        self.assertEqual(console.guest_time, 1.6)


if __name__ == "__main__":
    unittest.main()
