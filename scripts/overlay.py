#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Lays this project over a kernel tree.

    overlay.py --pristine KERNEL --tree TREE [--top CHECKOUT] [--version 7.3.4]

TREE starts as a copy of KERNEL. Files under the ROOTS of the checkout go to the
same path in it. What files of the kernel itself need is declared in
scripts/wireup/*.toml:

    [[edit]]
    file = "arch/x86/kvm/Makefile"
    after = "whole lines, blanks at both ends ignored"     # or: before = "…"
    insert = \"\"\"
    lines
    \"\"\"

    [[edit]]
    file = "arch/x86/kvm/vmx/tdx.c"
    line = "static DEFINE_MUTEX(tdx_lock);"
    drop = "static "                # by = "…": what to put in its place

    # for some kernels only: kernels = ["7.2"]

`line` may be several lines, for the sake of the one that has what to drop.

Anchors are looked for in the pristine file and must be found exactly once.
Files are written only if their content changes, so that make rebuilds only what
it must; laying the same thing twice changes nothing.
"""

import argparse
import hashlib
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tomllib

ROOTS = ("arch", "Documentation", "include", "rust", "tools/testing", "virt")
SKIPPED_FOLDERS = {"target", "__pycache__"}
SKIPPED_SUFFIXES = {".swp", ".orig", ".rej", ".pyc"}
KEYS = {"file", "after", "before", "insert", "line", "drop", "by", "kernels"}


class OverlayError(Exception):
    """What keeps the overlay from being laid, for a person to read."""


def overlay_files(top):
    """Yields the path in the kernel of each file to lay."""
    for root in ROOTS:
        for folder, folders, names in os.walk(top / root):
            folders[:] = sorted(f for f in folders if f not in SKIPPED_FOLDERS)
            for name in sorted(names):
                path = Path(folder, name)
                if path.suffix in SKIPPED_SUFFIXES or name.startswith(".#") or name.endswith("~"):
                    continue
                yield path.relative_to(top).as_posix()


def read_edits(top, series, folder="wireup", others=frozenset()):
    """Returns {file: [edit]} from the files of scripts/<folder>, checked for form.

    Tables named in `others` are somebody else's.
    """
    edits = {}
    for toml in sorted((top / "scripts" / folder).glob("*.toml")):
        where = toml.relative_to(top)
        try:
            data = tomllib.loads(toml.read_text())
        except tomllib.TOMLDecodeError as error:
            raise OverlayError(f"{where}: {error}") from None
        unknown = sorted(set(data) - {"edit"} - others)
        if unknown:
            raise OverlayError(f"{where}: unknown table {unknown[0]!r}")
        for number, edit in enumerate(data.get("edit", []), 1):
            name = f"{where}, edit {number}"
            form = set(edit) - {"file", "kernels", "by" if "drop" in edit else ""}
            if set(edit) - KEYS:
                raise OverlayError(f"{name}: unknown key {sorted(set(edit) - KEYS)[0]!r}")
            if "file" not in edit:
                raise OverlayError(f"{name}: names no file")
            if form not in ({"after", "insert"}, {"before", "insert"}, {"line", "drop"}):
                raise OverlayError(f"{name} ({edit['file']}): needs after+insert, before+insert or line+drop")
            if series in edit.get("kernels", [series]):
                edits.setdefault(edit["file"], []).append((name, edit))
    return edits


def find(lines, anchor, name, file, version):
    """Returns the first and one past the last line of `anchor` in `lines`."""
    wanted = [line.strip() for line in anchor.strip("\n").split("\n")]
    shown = "\n".join(f"    {line}" for line in wanted)
    if not any(wanted):
        raise OverlayError(f"{name}: empty anchor for {file}")
    stripped = [line.strip() for line in lines]
    hits = [
        start
        for start in range(len(lines) - len(wanted) + 1)
        if stripped[start : start + len(wanted)] == wanted
    ]
    if not hits:
        raise OverlayError(f"{name}: anchor not found in {file} of Linux {version}:\n{shown}")
    if len(hits) > 1:
        at = ", ".join(str(hit + 1) for hit in hits)
        raise OverlayError(
            f"{name}: anchor found {len(hits)} times in {file} of Linux {version} (lines {at}):\n{shown}"
        )
    return hits[0], hits[0] + len(wanted)


def apply_edits(text, file, edits, version):
    """Returns `text`, the pristine content of `file`, with `edits` made."""
    lines = text.splitlines(keepends=True)
    replaced = list(lines)
    inserted = {}
    for name, edit in edits:
        if "line" in edit:
            start, end = find(lines, edit["line"], name, file, version)
            hits = [number for number in range(start, end) if edit["drop"] in replaced[number]]
            if len(hits) != 1 or replaced[hits[0]].count(edit["drop"]) != 1:
                raise OverlayError(f"{name}: {edit['drop']!r} is not exactly once in the line it names in {file}")
            replaced[hits[0]] = replaced[hits[0]].replace(edit["drop"], edit.get("by", ""))
            continue
        start, end = find(lines, edit.get("after", edit.get("before")), name, file, version)
        inserted.setdefault(end if "after" in edit else start, []).append(edit["insert"].removesuffix("\n") + "\n")
    result = []
    for number in range(len(lines) + 1):
        result += inserted.get(number, [])
        result += replaced[number : number + 1]
    return "".join(result)


def write_if_changed(path, content, mode):
    """Returns whether `path` had to be written."""
    try:
        if not path.is_symlink() and path.read_bytes() == content and path.stat().st_mode & 0o777 == mode:
            return False
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".overlay-new")
    new.write_bytes(content)
    new.chmod(mode)
    new.replace(path)
    return True


def copy_pristine(pristine, tree):
    """Makes `tree` a fresh copy of `pristine`, all or nothing."""
    new = tree.with_name(tree.name + ".new")
    for old in (tree, new):
        if old.exists():
            shutil.rmtree(old)
    new.mkdir(parents=True)
    entries = [entry for entry in sorted(os.listdir(pristine)) if entry != ".git"]
    subprocess.run(
        ["cp", "-a", "--reflink=auto", "-t", str(new), "--", *(str(pristine / entry) for entry in entries)],
        check=True,
    )
    new.rename(tree)


def lay(top, pristine, tree, version):
    """Brings `tree` to what the checkout says. Returns the changed paths,
    unless all of it is new, and three counts.
    """
    series = ".".join(version.split(".")[:2])
    edits = read_edits(top, series)
    files = list(overlay_files(top))

    # Everything is worked out before anything is written.
    wanted = {}
    for file in files:
        if (pristine / file).exists():
            raise OverlayError(
                f"{file} exists in Linux {version}: the overlay only adds files\n"
                "    what a file of the kernel needs goes to scripts/wireup/"
            )
        source = top / file
        mode = 0o755 if os.access(source, os.X_OK) else 0o644
        wanted[file] = (source.read_bytes(), mode)
    for file, its_edits in edits.items():
        original = pristine / file
        if not original.is_file():
            raise OverlayError(f"{its_edits[0][0]}: no file {file} in Linux {version}")
        text = apply_edits(original.read_text(), file, its_edits, version)
        wanted[file] = (text.encode(), original.stat().st_mode & 0o777)

    state = tree.with_name(tree.name + ".overlay.json")
    # A tree of the user's may become another version of itself.
    makefile = pristine / "Makefile"
    origin = {
        "origin": str(pristine),
        "version": version,
        "makefile": makefile.stat().st_mtime_ns if makefile.exists() else 0,
    }
    try:
        before = json.loads(state.read_text())
    except (FileNotFoundError, ValueError):
        before = {}
    if not tree.is_dir() or any(before.get(key) != value for key, value in origin.items()):
        state.unlink(missing_ok=True)
        copy_pristine(pristine, tree)
        before = {"files": [], "fresh": True}

    # Noted first: an interrupted run is then put right by the next one.
    digest = hashlib.sha256()
    for file, (content, mode) in sorted(wanted.items()):
        digest.update(f"{file} {mode} {len(content)}\n".encode() + content)
    everything = sorted(set(before["files"]) | set(wanted))
    state.write_text(json.dumps({**origin, "files": everything}, indent=1))
    changed = [file for file in sorted(wanted) if write_if_changed(tree / file, *wanted[file])]
    for file in sorted(set(before["files"]) - set(wanted)):
        if (pristine / file).exists():
            original = pristine / file
            if write_if_changed(tree / file, original.read_bytes(), original.stat().st_mode & 0o777):
                changed.append(file)
        elif (tree / file).exists():
            (tree / file).unlink()
            changed.append(file)
    after = {**origin, "digest": digest.hexdigest(), "files": sorted(wanted)}
    state.write_text(json.dumps(after, indent=1))
    return [] if before.get("fresh") else changed, len(changed), len(files), len(edits)


def main():
    parser = argparse.ArgumentParser(description="Lays this project over a kernel tree.")
    parser.add_argument("--pristine", type=Path, required=True, help="the untouched kernel")
    parser.add_argument("--tree", type=Path, required=True, help="the laid tree, made if it is not there")
    parser.add_argument("--top", type=Path, default=Path(__file__).resolve().parent.parent, help="the checkout")
    parser.add_argument("--version", required=True, help="of the kernel, as 7.3.4")
    args = parser.parse_args()
    try:
        changed, count, files, edited = lay(args.top, args.pristine, args.tree, args.version)
    except OverlayError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    for file in changed[:20]:
        print(f"  laid {file}")
    if len(changed) > 20:
        print(f"  … and {len(changed) - 20} more")
    print(f"overlay: {files} files, {edited} files of the kernel wired up, {count} changed")


if __name__ == "__main__":
    main()
