# SPDX-License-Identifier: GPL-2.0
"""What tdx-check says of machines that lack something, each of them made of a few files."""

import gzip
import os
from pathlib import Path
import re
import subprocess
import tempfile
import unittest

SCRIPT = Path(__file__).resolve().parent.parent / "tdx-check"

CPUINFO = "vendor_id : GenuineIntel\nmodel name\t: A processor\nflags\t\t: fpu vmx movdir64b ss xsave tdx_host_platform\n"
CONFIG = "".join(
    f"CONFIG_{option}=y\n" for option in ("KVM", "KVM_INTEL", "INTEL_TDX_HOST", "KVM_INTEL_TDX", "KVM_INTEL_TDX_RUST")
)
DMESG = """\
[    1.1] virt/tdx: BIOS enabled: private KeyID range [32, 64)
[    1.6] virt/tdx: Module version: 1.5.05
[    1.7] virt/tdx: TDX-Module initialized
"""
TAP = "TAP version 13\n1..2\nok 1 one\nok 2 two # SKIP not here\n"


class Machine:
    """A machine that has all, unless somebody takes it away."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.top = Path(self.folder.name)
        self.root = self.top / "root"
        self.programs = self.top / "bin"
        self.here = self.top / "tdx-check"
        self.write("proc/cpuinfo", CPUINFO)
        self.write("proc/cmdline", "quiet\n")
        self.write("proc/sys/kernel/panic_on_warn", "0\n")
        self.write("boot/config-7.3.4", CONFIG)
        self.write("sys/power/disk", "[disabled]\n")
        for name, value in {"tdx": "Y", "tdx_rust": "Y", "tdx_served": "rust=0 c=0"}.items():
            self.write(f"sys/module/kvm_intel/parameters/{name}", value + "\n")
        self.write("sys/fs/cgroup/cgroup.subtree_control", "")
        self.write("dev/kmsg", "")
        self.dmesg = DMESG
        self.program(self.programs / "id", "echo 0")
        self.program(self.programs / "uname", "echo 7.3.4")
        self.program(self.programs / "journalctl", "exit 1")
        self.program(self.programs / "dmesg", f'cat "{self.top}/dmesg"; sed "s/^/[9.9] /" "{self.root}/dev/kmsg"; cat "{self.top}/dmesg.late" 2>/dev/null')
        self.here.mkdir()
        self.program(self.here / "tdx-check", SCRIPT.read_text().split("\n", 1)[1])
        self.program(self.here / "tdxvm", 'echo "max_vcpus 2"')
        self.program(self.here / "conformance", "echo '@tally {\"programs\":9}'")
        for test in ("lifecycle", "bad_input", "state_guard", "fault"):
            self.program(self.here / "kselftest" / f"tdx_{test}_test", f"printf '{TAP}'".replace("\n", "\\n"))

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def program(self, path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def check(self, *arguments):
        """Returns the status, and what each check came to with what is said below it."""
        (self.top / "dmesg").write_text(self.dmesg)
        done = subprocess.run(
            ["sh", self.here / "tdx-check", *arguments], cwd=self.top, text=True, capture_output=True, check=False,
            env={"PATH": f"{self.programs}:{os.environ['PATH']}", "TDX_CHECK_ROOT": str(self.root)},
        )  # fmt: skip
        found = {}
        for verdict, name, skip, below in re.findall(
            r"^(ok|not ok) \d+ ([^#\n]*?)(?: # SKIP (.*))?\n((?:#   .*\n)*)", done.stdout, re.MULTILINE
        ):
            found[name] = ("skip" if skip else verdict, skip + below)
        return done.returncode, found


class TdxCheck(unittest.TestCase):
    def setUp(self):
        self.machine = Machine()
        self.addCleanup(self.machine.folder.cleanup)

    def assert_wrong(self, name, *texts, arguments=("-l",), others=()):
        """This check fails, with what to do, and so do those in `others`; nothing else does."""
        status, found = self.machine.check(*arguments)
        self.assertEqual(status, 1, found)
        wrong = {check for check, (verdict, _) in found.items() if verdict == "not ok"}
        self.assertEqual(wrong, {name, *others}, found)
        for text in (*texts, "to do: "):
            self.assertIn(text, found[name][1])

    def test_all_is_well(self):
        status, found = self.machine.check()
        self.assertEqual(status, 0, found)
        self.assertEqual(
            {check for check, (verdict, _) in found.items() if verdict == "skip"},
            {"tdx_fault_test-rust", "tdx_fault_test-c", "a TD with real firmware"},
        )
        self.assertIn("1 passed, 1 skipped", found["tdx_bad_input_test-c"][1])
        self.assertIn("not here (1)", found["tdx_bad_input_test-c"][1])
        self.assertIn("programs 9", found["100 generated programs, no difference of C and Rust"][1])

    def test_look_only(self):
        status, found = self.machine.check("-l")
        self.assertEqual((status, len(found)), (0, 7), found)

    def test_one_implementation(self):
        _, found = self.machine.check("-i", "c", "-t", "tdx_lifecycle_test,tdx_fault_test", "-n", "0")
        self.assertEqual(
            [check for check in found if "test" in check], ["tdx_lifecycle_test-c", "tdx_fault_test-c"]
        )

    def test_the_switch_is_put_back(self):
        self.machine.write("sys/module/kvm_intel/parameters/tdx_rust", "N\n")
        self.machine.check("-f", "/dev/null")
        self.assertEqual((self.machine.root / "sys/module/kvm_intel/parameters/tdx_rust").read_text(), "N\n")

    def test_no_vmx(self):
        self.machine.write("proc/cpuinfo", CPUINFO.replace("vmx ", ""))
        self.assert_wrong("the processor can be a TDX host", "lacks: vmx")

    def test_no_key_ids(self):
        self.machine.write("proc/cpuinfo", CPUINFO.replace(" tdx_host_platform", ""))
        self.machine.dmesg = ""
        self.assert_wrong(
            "the processor can be a TDX host", "key split", others=["the TDX module is initialized"]
        )

    def test_no_option(self):
        self.machine.write("boot/config-7.3.4", CONFIG.replace("CONFIG_INTEL_TDX_HOST=y", "# none"))
        self.assert_wrong("the kernel has what it needs", "lacks: INTEL_TDX_HOST\n", "scripts/config -e INTEL_TDX_HOST")

    def test_no_rust(self):
        self.machine.write("boot/config-7.3.4", CONFIG.replace("TDX_RUST=y", "TDX_RUST=n"))
        (self.machine.root / "sys/module/kvm_intel/parameters/tdx_rust").unlink()
        self.assert_wrong(
            "the kernel has what it needs", "KVM_INTEL_TDX_RUST", others=["the TDX ioctls are there in Rust, too"]
        )

    def test_options_in_proc(self):
        (self.machine.root / "boot/config-7.3.4").unlink()
        self.assertEqual(self.machine.check("-l")[1]["the kernel has what it needs"][0], "skip")
        (self.machine.root / "proc/config.gz").write_bytes(gzip.compress(CONFIG.encode()))
        self.assertEqual(self.machine.check("-l")[1]["the kernel has what it needs"][0], "ok")

    def test_hibernation(self):
        self.machine.write("sys/power/disk", "[platform] shutdown reboot\n")
        self.machine.dmesg = "[1.1] virt/tdx: initialization failed: Hibernation support is enabled\n"
        self.assert_wrong("the kernel cannot hibernate", "nohibernate", others=["the TDX module is initialized"])

    def test_module(self):
        for line, advice in {
            "module not loaded": "SEAM loader",
            "initialization failed: too few private KeyIDs available.": "key split",
            "initialization failed: Hibernation support is enabled": "nohibernate",
            "frame pointer (RBP) clobber bug present, upgrade TDX module": "update the TDX module",
            "MOVDIR64B is required for TDX": "MOVDIR64B",
            "TDX not supported by the host platform": "processor",
            "SEAMCALL (0x21) failed: 0xc000050500000000": "0xc000050500000000",
        }.items():
            with self.subTest(line):
                self.machine.dmesg = f"[    1.1] virt/tdx: {line}\n"
                self.assert_wrong("the TDX module is initialized", advice)

    def test_version_of_the_device(self):
        self.machine.dmesg = ""
        self.assertEqual(self.machine.check("-l")[1]["the TDX module is initialized"][0], "skip")
        self.machine.write("sys/devices/faux/tdx_host/version", "1.5.24\n")
        self.assertIn("version 1.5.24", self.machine.check("-l")[1]["the TDX module is initialized"][1])

    def test_software_module(self):
        self.machine.write("proc/cmdline", "quiet tdx_emulator=on,plain\n")
        self.assertIn("nothing is confidential", self.machine.check("-l")[1]["the TDX module is initialized"][1])

    def test_parameter_off(self):
        self.machine.write("sys/module/kvm_intel/parameters/tdx", "N\n")
        self.assert_wrong("kvm_intel is loaded with tdx=1", "boot with kvm_intel.tdx=1")

    def test_not_loaded(self):
        for file in (self.machine.root / "sys/module/kvm_intel/parameters").iterdir():
            file.unlink()
        (self.machine.root / "sys/module/kvm_intel/parameters").rmdir()
        self.assert_wrong(
            "kvm_intel is loaded with tdx=1", "modprobe kvm_intel", others=["the TDX ioctls are there in Rust, too"]
        )

    def test_no_tds(self):
        self.machine.program(self.machine.here / "tdxvm", 'echo "tdxvm: no TDs" >&2; echo "tdxvm: what to do: this" >&2; exit 1')
        self.assert_wrong("KVM makes TDs", "no TDs", "to do: this", arguments=())

    def test_a_selftest_fails(self):
        self.machine.program(self.machine.here / "kselftest" / "tdx_fault_test", "exit 1")
        self.machine.program(
            self.machine.here / "kselftest" / "tdx_bad_input_test", '[ "$2" = c ] || echo "not ok 1 flags"; echo "ok 2 more"; [ "$2" = c ]'
        )
        self.assert_wrong("tdx_bad_input_test-rust", "flags", "status 1", arguments=())

    def test_a_selftest_that_says_nothing(self):
        self.machine.program(self.machine.here / "kselftest" / "tdx_lifecycle_test", "exit 0")
        self.assert_wrong("tdx_lifecycle_test-rust", arguments=(), others=["tdx_lifecycle_test-c"])

    def test_firmware(self):
        self.machine.program(
            self.machine.here / "tdxvm", 'case $1 in caps) echo ok;; *) echo "tdxvm: it is broken" >&2; echo "tdxvm: what to do: that" >&2; exit 1;; esac'
        )
        self.assert_wrong(
            "a TD with real firmware, by c", "it is broken", "to do: that",
            arguments=("-f", "/dev/null"), others=["a TD with real firmware, by rust"],
        )  # fmt: skip

    def test_a_difference(self):
        self.machine.program(self.machine.here / "conformance", "echo 'C and Rust differ (seed 4)'; echo '@tally {}'; exit 1")
        self.assert_wrong("100 generated programs, no difference of C and Rust", "seed 4", arguments=())
        self.machine.program(self.machine.here / "conformance", "exit 0")
        self.assert_wrong("100 generated programs, no difference of C and Rust", arguments=())

    def test_panic_on_warn(self):
        self.machine.write("proc/sys/kernel/panic_on_warn", "1\n")
        _, found = self.machine.check()
        self.assertIn("panic_on_warn=0", found["100 generated programs, no difference of C and Rust"][1])

    def test_a_log_that_cannot_be_read(self):
        self.machine.program(self.machine.programs / "dmesg", "echo denied >&2; exit 1")
        status, found = self.machine.check()
        self.assertEqual(status, 1)
        verdict, below = found["the kernel reports nothing wrong"]
        self.assertEqual(verdict, "not ok")
        self.assertIn("its log cannot be read: denied", below)

    def test_the_kernel_complains(self):
        late = self.machine.top / "dmesg.late"
        late.write_text("[9.9] WARNING: arch/x86/kvm/vmx/tdx.c:2345 at tdx_vm_ioctl+0x1\n")
        self.assertEqual(self.machine.check()[0], 0)
        late.write_text("[9.9] BUG: sleeping function called from invalid context\n")
        self.assert_wrong("the kernel reports nothing wrong", "sleeping function", arguments=())
        # Not what was there before.
        late.write_text("")
        self.machine.dmesg += "[1.1] WARNING: something else\n"
        self.assertEqual(self.machine.check()[0], 0)

    def test_called_wrongly(self):
        for arguments in (("-x",), ("-n", "many"), ("more",), ("-r", ""), ("-i", "go")):
            self.assertEqual(self.machine.check(*arguments)[0], 2, arguments)
        self.machine.program(self.machine.programs / "id", "echo 1000")
        self.assertEqual(self.machine.check()[0], 2)


if __name__ == "__main__":
    unittest.main()
