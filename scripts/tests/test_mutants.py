# SPDX-License-Identifier: GPL-2.0
"""The mutants: that they can be made of this tree, and name tests that exist."""

import importlib.machinery
import importlib.util
from pathlib import Path
import re
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

SCRIPTS = Path(__file__).resolve().parent.parent
TOP = SCRIPTS.parent
SELFTESTS = TOP / "tools" / "testing" / "selftests" / "kvm" / "x86"

sys.path.insert(0, str(SCRIPTS))
loader = importlib.machinery.SourceFileLoader("mutate", str(SCRIPTS / "mutate"))
mutate = importlib.util.module_from_spec(importlib.util.spec_from_loader("mutate", loader))
sys.modules["mutate"] = mutate
loader.exec_module(mutate)

from overlay import apply_edits, read_edits  # noqa: E402


class Mutants(unittest.TestCase):
    def setUp(self):
        self.mutants = mutate.mutants()

    def test_edits_fit_this_tree(self):
        for kind in (mutate.GUARD, mutate.SLIPS):
            edits = read_edits(TOP, "any", kind.name, {"mutant"})
            self.assertTrue(edits)
            for file, its_edits in edits.items():
                text = (TOP / file).read_text()
                self.assertNotEqual(apply_edits(text, file, its_edits, "this tree"), text)

    def test_names_are_unique(self):
        names = [mutant.name for mutant in self.mutants]
        self.assertEqual(len(names), len(set(names)))
        # What KVM keeps of the name.
        self.assertLess(max(map(len, names)), 32)

    def test_tests_exist(self):
        for mutant in self.mutants:
            re.compile(mutant.shows)
            if mutant.test == "kunit":
                text = (TOP / "rust" / "kernel" / "kvm" / "tests.rs").read_text()
                self.assertIn(f"kunit_tests({mutant.only})", text)
                continue
            if mutant.kind is mutate.SLIPS:
                self.assertTrue(0 <= mutant.program <= mutate.PROGRAMS, mutant.name)
                continue
            text = (SELFTESTS / f"{mutant.test}.c").read_text()
            for name in mutant.only.split(","):
                self.assertTrue(re.search(rf"TEST\w*\((tdx, )?{name}[,)]", text), f"{mutant.name}: {name}")

    def test_docs_are_up_to_date(self):
        for table in (mutate.table, mutate.table_of_slips):
            self.assertIn(table(self.mutants), mutate.DOCS.read_text(), "scripts/mutate --docs")

    def test_every_lock_of_the_guard_is_left_out_once(self):
        names = {mutant.name for mutant in self.mutants}
        self.assertLessEqual({"no-vm-lock", "no-vcpu-mutexes", "one-vcpu-mutex", "no-slots-lock", "no-mmu-lock"}, names)
        for command in ("init-vm", "init-vcpu", "mem-region", "finalize-vm"):
            self.assertIn(f"unguarded-{command}", names)

    def run_mutate(self, folder, job):
        """Tries one slip with boots that print `job`. Returns the exit status, and how often it booted."""
        payload = folder / "payload" / "conformance"
        payload.mkdir(parents=True, exist_ok=True)
        done = subprocess.CompletedProcess([], 0)
        with (
            mock.patch.multiple(mutate, BUILD=folder, FOUND=folder / "found", build=lambda kind: "key"),
            mock.patch.object(mutate.subprocess, "run", return_value=done),
            mock.patch.object(mutate, "boot", return_value=(job, [])) as boot,
            mock.patch.object(sys, "argv", ["mutate", "caps-room"]),
            mock.patch("builtins.print"),
            self.assertRaises(SystemExit) as end,
        ):
            mutate.main()
        return end.exception.code, boot.call_count

    def test_a_mutant_is_tried_once_and_its_finding_kept(self):
        finding = '@finding {"seed": 2, "kind": "C and Rust differ", "difference": "step 1: result: 0 | E2BIG"}'
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(self.run_mutate(Path(folder), [finding]), (0, 1))
            self.assertEqual(self.run_mutate(Path(folder), []), (0, 0))
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(self.run_mutate(Path(folder), []), (1, 1))


if __name__ == "__main__":
    unittest.main()
