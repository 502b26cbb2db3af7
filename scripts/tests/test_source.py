# SPDX-License-Identifier: GPL-2.0
"""Which kernels are refused, and how."""

import os
from pathlib import Path
import subprocess
import tempfile
import unittest

SCRIPT = Path(__file__).resolve().parent.parent / "kernel-source"


class Source(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.base = Path(holder.name)

    def tree(self, version):
        tree = self.base / "tree"
        tree.mkdir()
        numbers = dict(zip(("VERSION", "PATCHLEVEL", "SUBLEVEL"), version.split(".")))
        (tree / "Makefile").write_text("".join(f"{key} = {value}\n" for key, value in numbers.items()))
        for name in ("Kconfig", "MAINTAINERS"):
            (tree / name).write_text("")
        return tree

    def refused(self, linux, *parts):
        done = subprocess.run(
            [SCRIPT],
            env={**os.environ, "LINUX": str(linux), "KVM_TDX_CACHE": str(self.base / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        self.assertEqual(done.returncode, 1, done.stderr)
        for part in parts:
            self.assertIn(part, done.stderr)

    def test_other_versions(self):
        self.refused(self.tree("6.12.1"), "is Linux 6.12.1", "supported: 7.3 7.2", "LINUX=")

    def test_another_series(self):
        self.refused("7.1", "LINUX=7.1", "supported: 7.3 7.2")

    def test_a_tree_that_was_built_in(self):
        tree = self.tree("7.3.4")
        (tree / ".config").write_text("")
        self.refused(tree, "was built in", "mrproper")

    def test_no_kernel_tree(self):
        self.refused(self.base, "is not a kernel tree")

    def test_nothing_there(self):
        self.refused(self.base / "gone", "neither a folder nor a file, nor a series")

    def test_no_tarball(self):
        (self.base / "kernel.txt").write_text("x")
        self.refused(self.base / "kernel.txt", "not a .tar")


if __name__ == "__main__":
    unittest.main()
