# SPDX-License-Identifier: GPL-2.0
"""Reads TAP and KTAP: what kselftests and KUnit print."""

import re

RESULT = re.compile(r"^(\s*)(ok|not ok)\s+(\d+)\s*(?:-\s*)?([^#]*?)\s*(?:#\s*(.*))?$")
PLAN = re.compile(r"^(\s*)1\.\.(\d+)(?:\s*#\s*(.*))?$")


class Summary:
    """Counts the tests that hold no further tests; keeps what did not pass."""

    def __init__(self):
        self.passed = 0
        self.failed = []
        self.skipped = []
        self.problems = []
        self.names = []
        self._open = {}
        self._plans = {}

    def line(self, line):
        """Takes one line, without a timestamp. Returns whether it was a result."""
        plan = PLAN.match(line)
        if plan:
            depth = len(plan.group(1))
            self._plans[depth] = int(plan.group(2))
            self._open.setdefault(depth, {"count": 0, "failed": False})
            if int(plan.group(2)) == 0 and "SKIP" in (plan.group(3) or "").upper():
                self.skipped.append(plan.group(3))
            return False
        found = RESULT.match(line)
        if not found:
            return False
        indent, verdict, number, name, directive = found.groups()
        depth = len(indent)
        inner = [d for d in self._open if d > depth and self._open[d]["count"]]
        holds_tests = bool(inner)
        inner_failed = any(self._open[d]["failed"] for d in inner)
        for d in [d for d in self._open if d > depth]:
            self._check_plan(d, name)
            del self._open[d]
        here = self._open.setdefault(depth, {"count": 0, "failed": False})
        here["count"] += 1
        name = name or number
        skipped = (directive or "").upper().startswith("SKIP")
        if verdict == "not ok" and not (directive or "").upper().startswith("TODO"):
            here["failed"] = True
        if holds_tests:
            if verdict == "not ok" and not inner_failed:
                self.failed.append(name)
            return True
        self.names.append(name)
        if verdict == "not ok":
            self.failed.append(name)
        elif skipped:
            self.skipped.append(name)
        else:
            self.passed += 1
        return True

    def _check_plan(self, depth, name):
        planned = self._plans.pop(depth, None)
        count = self._open[depth]["count"]
        if planned is not None and planned != count:
            self.problems.append(f"{name}: {planned} tests planned, {count} reported")

    def end(self):
        """To be called after the last line."""
        for depth in sorted(self._open):
            self._check_plan(depth, "whole run")
        self._open.clear()
        return self
