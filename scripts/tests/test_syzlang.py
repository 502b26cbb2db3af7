# SPDX-License-Identifier: GPL-2.0
"""tools/tdx/syzkaller/dev_kvm_tdx.txt: that it is made as syzkaller's documentation says.

syzkaller itself, which needs Go and modules from the network, is the judge; this
is what can be told without it: grammar, that each name that is used is defined
and the other way round, directions, and that each structure is as large as the
kernel's.
"""

from pathlib import Path
import re
import unittest

TOP = Path(__file__).resolve().parent.parent.parent
FILE = TOP / "tools/tdx/syzkaller/dev_kvm_tdx.txt"

# What dev_kvm.txt and sys.txt define.
FOREIGN = {"fd", "fd_kvm", "fd_kvmcpu", "fd_kvmvm"}
INTEGERS = {"int8": 1, "int16": 2, "int32": 4, "int64": 8, "intptr": 8}
BUILTIN = {*INTEGERS, "const", "flags", "array", "ptr", "ptr64", "len", "vma64"}
# The kernel's structures, with no element in what has no fixed length.
SIZES = {
    "kvm_tdx_any_cmd": 24,
    "kvm_tdx_capabilities": 2048 + 8,
    "kvm_tdx_cpuid2": 8,
    "kvm_tdx_cpuid_entry2": 40,
    "kvm_tdx_create_guest_memfd": 64,
    "kvm_tdx_init_mem_region": 24,
    "kvm_tdx_init_vm": 256 + 8,
    "kvm_tdx_memory_attributes": 32,
    "kvm_tdx_memory_region2": 160,
    "kvm_tdx_pre_fault_memory": 64,
}

NAME = r"[a-zA-Z_][a-zA-Z0-9_]*"
CALL = re.compile(rf"({NAME})\$({NAME})\((.*)\)(?: ({NAME}))?")


class Type:
    """A type with its arguments: array[int64, 6]."""

    def __init__(self, text):
        self.name, rest = re.fullmatch(rf"({NAME}|0x[0-9a-f]+|[0-9]+)((?:[:\[].*)?)", text).groups()
        self.range = None
        if rest.startswith(":"):
            self.range, rest = rest[1:], ""
        elif rest and not rest.endswith("]"):
            raise ValueError(text)
        self.args = [Type(arg) for arg in split(rest[1:-1])] if rest else []

    def walk(self):
        yield self
        for arg in self.args:
            yield from arg.walk()


def split(text):
    """Splits at the commas that are in no brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "[") - (char == "]")
        if depth < 0:
            raise ValueError(text)
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    if depth:
        raise ValueError(text)
    return [part.strip() for part in parts]


class Description:
    """The file, taken apart."""

    def __init__(self, text):
        self.structs, self.unions, self.templates = {}, {}, {}
        self.flags, self.resources, self.defines, self.calls = {}, {}, {}, {}
        block = None
        for number, line in enumerate(text.splitlines(), 1):
            try:
                block = self.line(line, block)
            except (AttributeError, ValueError) as error:
                raise ValueError(f"line {number}: {line}") from error
        if block is not None:
            raise ValueError("a block has no end")

    def line(self, line, block):
        if block is not None:
            if line in ("}", "]"):
                return None
            field, kind, _ = re.fullmatch(rf"\t({NAME})\t+([^\t]+)(\t\((?:in|out|inout)\))?", line).groups()
            block.append((field, Type(kind)))
            return block
        if not line or line.startswith(("#", "include <", "meta ")):
            return None
        if found := re.fullmatch(rf"resource ({NAME})\[({NAME})\]", line):
            self.resources[found[1]] = found[2]
        elif found := re.fullmatch(rf"define ({NAME})\t(.+)", line):
            self.defines[found[1]] = found[2]
        elif found := re.fullmatch(rf"({NAME}) = (.+)", line):
            self.flags[found[1]] = split(found[2])
        elif found := re.fullmatch(rf"type ({NAME})\[(.*)\] \{{", line):
            self.templates[found[1]] = (split(found[2]), block := [])
        elif found := re.fullmatch(rf"({NAME}) \{{", line):
            self.structs[found[1]] = block = []
        elif found := re.fullmatch(rf"({NAME}) \[", line):
            self.unions[found[1]] = block = []
        else:
            base, name, args, result = CALL.fullmatch(line).groups()
            args = [arg.split(" ", 1) for arg in split(args)]
            self.calls[f"{base}${name}"] = ([(field, Type(kind)) for field, kind in args], result)
        return block

    def blocks(self):
        yield from self.structs.items()
        yield from self.unions.items()
        yield from ((name, fields) for name, (_, fields) in self.templates.items())

    def types(self):
        """Each type that is used, and in which block or call."""
        for name, fields in [*self.blocks(), *((name, args) for name, (args, _) in self.calls.items())]:
            for _, kind in fields:
                yield from ((name, used) for used in kind.walk())

    def size(self, kind):
        """Size and alignment; of what has no fixed length, the least."""
        if kind.name in INTEGERS:
            return INTEGERS[kind.name], INTEGERS[kind.name]
        if kind.name in ("ptr64", "vma64"):
            return 8, 8
        if kind.name in ("const", "flags", "len"):
            return self.size(kind.args[1])
        if kind.name == "array":
            size, align = self.size(kind.args[0])
            length = kind.args[1] if len(kind.args) > 1 else Type("0")
            return (0 if length.range else int(length.name)) * size, align
        if kind.name in self.unions:
            sizes = [self.size(option) for _, option in self.unions[kind.name]]
            return max(size for size, _ in sizes), max(align for _, align in sizes)
        if kind.name in self.resources or kind.name in FOREIGN:
            return 4, 4
        at, most = 0, 1
        for _, field in self.structs[kind.name]:
            size, align = self.size(field)
            at = -(-at // align) * align + size
            most = max(most, align)
        return -(-at // most) * most, most


class Syzlang(unittest.TestCase):
    """The file as it is, and that the rules can be broken."""

    def setUp(self):
        self.description = Description(FILE.read_text())

    def test_all_that_is_used_is_defined(self):
        description = self.description
        known = {*BUILTIN, *FOREIGN, *description.structs, *description.unions, *description.templates}
        known |= {*description.flags, *description.resources, *description.defines, "in", "out", "inout"}
        for where, used in description.types():
            parameters, fields = description.templates.get(where, ((), ()))
            own = {field for field, _ in description.structs.get(where, fields)}
            if used.name.isdigit() or used.name.startswith("0x") or used.name in own or used.name in parameters:
                continue
            # Constants come from the kernel's headers.
            if not re.match(r"KVM_|FALLOC_", used.name):
                self.assertIn(used.name, known, where)
        for name, (_, result) in description.calls.items():
            self.assertTrue(result is None or result in description.resources, name)
        for name, base in description.resources.items():
            self.assertIn(base, FOREIGN | set(description.resources), name)

    def test_all_that_is_defined_is_used(self):
        description = self.description
        used = {kind.name for _, kind in description.types()}
        used |= {kind.range.split(":")[-1] for _, kind in description.types() if kind.range}
        for names in (description.structs, description.unions, description.templates, description.flags,
                      description.defines, description.resources):  # fmt: skip
            for name in names:
                self.assertIn(name, used)
        made = {result for _, result in description.calls.values()}
        for name in description.resources:
            self.assertIn(name, made)

    def test_arguments(self):
        description = self.description
        counts = {"array": (1, 2), "ptr": (2,), "ptr64": (2,), "len": (1, 2), "const": (1, 2), "flags": (1, 2), "vma64": (0, 1)}
        blocks = {name for name, _ in description.blocks()}
        for where, kind in description.types():
            if kind.name in counts:
                self.assertIn(len(kind.args), counts[kind.name], f"{where}: {kind.name}")
            if kind.name in ("ptr", "ptr64"):
                self.assertIn(kind.args[0].name, ("in", "out", "inout"), where)
            if kind.name == "flags":
                self.assertIn(kind.args[0].name, description.flags, where)
            if kind.name in ("const", "flags", "len") and where in blocks:
                self.assertEqual(len(kind.args), 2, f"{where}: {kind.name} has no size")
            if kind.name in description.templates:
                self.assertEqual(len(kind.args), len(description.templates[kind.name][0]), where)

    def test_sizes_are_the_kernels(self):
        structs = set(self.description.structs)
        self.assertEqual(structs, set(SIZES))
        for name in structs:
            self.assertEqual(self.description.size(Type(name))[0], SIZES[name], name)

    def test_each_command_is_there(self):
        for command in ("CAPABILITIES", "INIT_VM", "INIT_VCPU", "INIT_MEM_REGION", "FINALIZE_VM", "GET_CPUID"):
            args, _ = self.description.calls[f"ioctl$KVM_TDX_{command}"]
            self.assertEqual(args[2][1].args[1].args[0].name, f"KVM_TDX_{command}")

    def test_mistakes_are_found(self):
        text = FILE.read_text()
        for bad in (
            text.replace("\tid\t\tconst[ID, int32]", "\tid\t\tconst[ID, int32"),
            text.replace("resource fd_kvmtd[fd_kvmvm]", "resource fd_kvmtd fd_kvmvm"),
            text.rstrip().removesuffix("}"),
            text.replace("kvm_tdx_attributes = 0,", "kvm_tdx_attributes 0,"),
        ):
            self.assertNotEqual(bad, text)
            with self.assertRaises(ValueError):
                Description(bad)
        smaller = Description(text.replace("\tpad2\t\t\tarray[const[0, int64], 14]", "\tpad2\t\t\tarray[const[0, int64], 13]"))
        self.assertNotEqual(smaller.size(Type("kvm_tdx_memory_region2"))[0], SIZES["kvm_tdx_memory_region2"])


if __name__ == "__main__":
    unittest.main()
