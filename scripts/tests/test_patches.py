# SPDX-License-Identifier: GPL-2.0
"""The series that scripts/patches writes, of a small kernel and a small overlay."""

import importlib.machinery
import importlib.util
from pathlib import Path
import sys
import tempfile
import unittest

SCRIPTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SCRIPTS))

SERIES = """
[[series]]
name = "one"
title = "Title"
cover = "Cover."

[[series.patch]]
subject = "first"
body = "Why."
files = ["arch/*.rs"]
edits = ["Makefile#1"]

[[series.patch]]
subject = "second"
body = "Why."
files = ["rust/*"]
edits = ["Makefile#2"]

[[series.patch.part]]
file = "arch/a.rs"
text = "mod b;"
"""

WIREUP = """
[[edit]]
file = "Makefile"
after = "top"
insert = "one"

[[edit]]
file = "Makefile"
after = "bottom"
insert = "two"
"""


def load():
    loader = importlib.machinery.SourceFileLoader("patches", str(SCRIPTS / "patches"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("patches", loader))
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


class Patches(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.top, self.pristine = Path(folder.name, "top"), Path(folder.name, "linux")
        self.patches = load()
        self.patches.TOP = self.top
        self.patches.OUT, self.patches.WORK = self.top / "build/patches", self.top / "build/series"
        self.write("scripts/series.toml", SERIES)
        self.write("scripts/wireup/a.toml", WIREUP)
        self.write("arch/a.rs", "mod a;\nmod b;\n")
        self.write("rust/b.rs", "fn b() {}\n")
        self.pristine.mkdir()
        (self.pristine / "Makefile").write_text("top\nmiddle\nbottom\n")

    def write(self, name, text):
        path = self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def plan(self):
        return self.patches.Plan(self.pristine, "7.3.4")

    def check(self):
        plan = self.plan()
        repository, commits = self.patches.commit_all(plan)
        paths = self.patches.format_series(plan, repository, commits)
        self.patches.check_result(plan, repository, commits, paths)
        return plan, paths

    def refuses(self, pattern):
        return self.assertRaisesRegex(self.patches.OverlayError, pattern)

    def test_the_sum_is_the_overlay(self):
        plan, paths = self.check()
        self.assertEqual([path.name for path in paths], ["0001-first.patch", "0002-second.patch"])
        self.assertEqual(plan.tree(0)["arch/a.rs"][0], b"mod a;\n")
        self.assertEqual(plan.tree(0)["Makefile"][0], b"top\none\nmiddle\nbottom\n")
        self.assertEqual(plan.tree(1)["arch/a.rs"][0], b"mod a;\nmod b;\n")
        self.assertIn("+mod b;", paths[1].read_text())
        self.assertIn("Cover.", (paths[0].parent / "0000-cover-letter.patch").read_text())

    def test_a_series_that_is_not_the_overlay_is_noticed(self):
        plan = self.plan()
        repository, commits = self.patches.commit_all(plan)
        paths = self.patches.format_series(plan, repository, commits)
        self.write("rust/b.rs", "fn b() { }\n")
        with self.refuses("is not the overlay: rust/b.rs"):
            self.patches.check_result(plan, repository, commits, paths)

    def test_a_patch_that_git_refuses_is_noticed(self):
        plan = self.plan()
        repository, commits = self.patches.commit_all(plan)
        paths = self.patches.format_series(plan, repository, commits)
        with self.refuses("git am fails"):
            self.patches.check_result(plan, repository, commits, paths[1:])

    def test_a_file_of_no_patch(self):
        self.write("virt/c.c", "")
        with self.refuses("virt/c.c belongs to no patch"):
            self.plan()

    def test_an_edit_of_no_patch(self):
        self.write("scripts/series.toml", SERIES.replace('edits = ["Makefile#2"]', ""))
        with self.refuses("edit 2 .Makefile. belongs to no patch"):
            self.plan()

    def test_an_edit_of_two_patches(self):
        self.write("scripts/series.toml", SERIES.replace("Makefile#2", "Makefile"))
        with self.refuses("belongs to another patch too"):
            self.plan()

    def test_a_part_that_is_not_there(self):
        self.write("arch/a.rs", "mod a;\n")
        with self.refuses("the part is not exactly once in arch/a.rs"):
            self.plan()

    def test_a_pattern_that_names_nothing(self):
        self.write("scripts/series.toml", SERIES.replace("rust/*", "rust/x*"))
        with self.refuses("rust/b.rs belongs to no patch"):
            self.plan()


if __name__ == "__main__":
    unittest.main()
