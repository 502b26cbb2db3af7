# SPDX-License-Identifier: GPL-2.0
"""The overlay, on a kernel of two files."""

from pathlib import Path
import subprocess
import sys
import tempfile
import unittest

OVERLAY = Path(__file__).resolve().parent.parent / "overlay.py"
MAKEFILE = "obj-y += a.o\n\nobj-y += b.o\nobj-y += twice.o\nobj-y += twice.o\n"
SOURCE = "#include <x.h>\n\nstatic DEFINE_MUTEX(lock);\n\tint one;\n\tint two;\n"


class Overlay(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory()
        self.addCleanup(holder.cleanup)
        self.base = Path(holder.name)
        self.write("kernel/arch/Makefile", MAKEFILE)
        self.write("kernel/arch/source.c", SOURCE)
        self.write("top/arch/new/file.rs", "// new\n")
        self.tree = self.base / "tree"

    def write(self, path, text):
        (self.base / path).parent.mkdir(parents=True, exist_ok=True)
        (self.base / path).write_text(text)

    def wire(self, text):
        self.write("top/scripts/wireup/test.toml", text)

    def lay(self, version="7.3.4"):
        return subprocess.run(
            [sys.executable, OVERLAY, "--pristine", self.base / "kernel", "--tree", self.tree]
            + ["--top", self.base / "top", "--version", version],
            capture_output=True,
            text=True,
            check=False,
        )

    def laid(self, path):
        done = self.lay()
        self.assertEqual(done.returncode, 0, done.stderr)
        return (self.tree / path).read_text()

    def refused(self, *parts):
        done = self.lay()
        self.assertEqual(done.returncode, 1)
        for part in parts:
            self.assertIn(part, done.stderr)

    def stamps(self):
        return {path: path.stat().st_mtime_ns for path in self.tree.rglob("*") if path.is_file()}

    def test_lays_new_files(self):
        self.assertEqual(self.laid("arch/new/file.rs"), "// new\n")
        self.assertEqual((self.tree / "arch/Makefile").read_text(), MAKEFILE)

    def test_inserts_after_and_before(self):
        self.wire(
            '[[edit]]\nfile = "arch/Makefile"\nafter = "obj-y += a.o"\ninsert = "obj-y += after.o"\n'
            '[[edit]]\nfile = "arch/Makefile"\nbefore = "obj-y += b.o"\ninsert = """\nobj-y += before.o\n"""\n'
        )
        self.assertTrue(
            self.laid("arch/Makefile").startswith("obj-y += a.o\nobj-y += after.o\n\nobj-y += before.o\nobj-y += b.o\n")
        )

    def test_anchor_of_several_lines_ignores_outer_blanks(self):
        self.wire('[[edit]]\nfile = "arch/source.c"\nafter = """\nint one;\n  int two;"""\ninsert = "\\tint three;"\n')
        self.assertTrue(self.laid("arch/source.c").endswith("\tint two;\n\tint three;\n"))

    def test_drops_a_word(self):
        self.wire('[[edit]]\nfile = "arch/source.c"\nline = "static DEFINE_MUTEX(lock);"\ndrop = "static "\n')
        self.assertIn("\nDEFINE_MUTEX(lock);\n", self.laid("arch/source.c"))

    def test_replaces_a_word(self):
        self.wire(
            '[[edit]]\nfile = "arch/source.c"\nline = "static DEFINE_MUTEX(lock);"\ndrop = "static "\nby = "extern "\n'
        )
        self.assertIn("\nextern DEFINE_MUTEX(lock);\n", self.laid("arch/source.c"))

    def test_a_line_may_need_its_neighbour(self):
        self.wire('[[edit]]\nfile = "arch/Makefile"\nline = "obj-y += b.o\\nobj-y += twice.o"\ndrop = "twice"\nby = "once"\n')
        self.assertEqual(self.laid("arch/Makefile"), MAKEFILE.replace("twice", "once", 1))

    def test_a_word_in_two_lines_is_ambiguous(self):
        self.wire('[[edit]]\nfile = "arch/Makefile"\nline = "obj-y += b.o\\nobj-y += twice.o"\ndrop = "obj"\n')
        self.refused("not exactly once", "arch/Makefile")

    def test_by_needs_a_word_to_replace(self):
        self.wire('[[edit]]\nfile = "arch/source.c"\nafter = "int one;"\ninsert = "int three;"\nby = "x"\n')
        self.refused("needs after+insert, before+insert or line+drop")

    def test_missing_anchor(self):
        self.wire('[[edit]]\nfile = "arch/Makefile"\nafter = "obj-y += gone.o"\ninsert = "x"\n')
        self.refused("anchor not found", "arch/Makefile", "7.3.4", "obj-y += gone.o", "test.toml")

    def test_ambiguous_anchor(self):
        self.wire('[[edit]]\nfile = "arch/Makefile"\nafter = "obj-y += twice.o"\ninsert = "x"\n')
        self.refused("anchor found 2 times", "arch/Makefile", "7.3.4", "lines 4, 5")

    def test_a_part_of_a_line_is_no_anchor(self):
        self.wire('[[edit]]\nfile = "arch/Makefile"\nafter = "obj-y += a"\ninsert = "x"\n')
        self.refused("anchor not found")

    def test_missing_file(self):
        self.wire('[[edit]]\nfile = "arch/gone.c"\nafter = "x"\ninsert = "x"\n')
        self.refused("no file arch/gone.c", "7.3.4")

    def test_malformed_edits(self):
        for text, message in {
            '[[edit]]\nfile = "arch/Makefile"\nafter = "x"\n': "needs after+insert",
            '[[edit]]\nafter = "x"\ninsert = "y"\n': "names no file",
            '[[edit]]\nfile = "a"\nafter = "x"\ninsert = "y"\nbogus = 1\n': "unknown key 'bogus'",
            '[[edits]]\nfile = "a"\n': "unknown table 'edits'",
            "[[edit]\n": "test.toml",
        }.items():
            with self.subTest(text=text):
                self.wire(text)
                self.refused(message)

    def test_a_refusal_leaves_the_tree_alone(self):
        self.assertEqual(self.lay().returncode, 0)
        before = self.stamps()
        self.write("top/arch/new/file.rs", "// changed\n")
        self.wire('[[edit]]\nfile = "arch/Makefile"\nafter = "gone"\ninsert = "x"\n')
        self.refused("anchor not found")
        self.assertEqual(self.stamps(), before)

    def test_will_not_replace_a_file_of_the_kernel(self):
        self.write("top/arch/Makefile", "mine\n")
        self.refused("arch/Makefile exists in Linux 7.3.4")

    def test_laying_again_changes_nothing(self):
        self.wire('[[edit]]\nfile = "arch/Makefile"\nafter = "obj-y += a.o"\ninsert = "obj-y += c.o"\n')
        self.assertEqual(self.lay().returncode, 0)
        before = self.stamps()
        done = self.lay()
        self.assertIn("0 changed", done.stdout)
        self.assertEqual(self.stamps(), before)

    def test_only_what_changed_is_written(self):
        self.assertEqual(self.lay().returncode, 0)
        before = self.stamps()
        self.write("top/arch/new/file.rs", "// changed\n")
        self.assertEqual(self.lay().returncode, 0)
        after = self.stamps()
        changed = [path.name for path in after if after[path] != before.get(path)]
        self.assertEqual(changed, ["file.rs"])

    def test_what_is_gone_goes(self):
        self.wire('[[edit]]\nfile = "arch/Makefile"\nafter = "obj-y += a.o"\ninsert = "obj-y += c.o"\n')
        self.assertEqual(self.lay().returncode, 0)
        self.wire("")
        (self.base / "top/arch/new/file.rs").unlink()
        self.assertEqual(self.laid("arch/Makefile"), MAKEFILE)
        self.assertFalse((self.tree / "arch/new/file.rs").exists())

    def test_edits_for_some_kernels_only(self):
        self.wire('[[edit]]\nfile = "arch/Makefile"\nafter = "gone"\ninsert = "x"\nkernels = ["7.2"]\n')
        self.assertEqual(self.lay("7.3.4").returncode, 0)
        done = self.lay("7.2.13")
        self.assertEqual(done.returncode, 1)
        self.assertIn("7.2.13", done.stderr)


if __name__ == "__main__":
    unittest.main()
