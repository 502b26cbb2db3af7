# SPDX-License-Identifier: GPL-2.0
"""What a kernel console may not say in a run that is to pass."""

import re

# The line that begins a report of something wrong in the kernel.
SPLAT = re.compile(
    r"""
    \bWARNING:
    | \bBUG:
    | \bkernel\ BUG\ at
    | \bOops\b
    | \bgeneral\ protection\ fault
    | \bunable\ to\ handle\ (kernel|page)
    | \bdouble\ fault
    | \bKernel\ panic
    | \bINFO:\ (task|possible|trying|suspicious|inconsistent|rcu_|HARDIRQ|SOFTIRQ)
    | \brcu:\ INFO:
    | \bpossible\ (circular|recursive|irq\ lock|nested|deadlock)
    | \binconsistent\ lock\ state
    | \bsuspicious\ RCU\ usage
    | \bbad\ unlock\ balance
    | \bheld\ lock\ freed
    | \block\ held\ (when\ returning|at\ task\ exit)
    | \bDEBUG_LOCKS_WARN_ON
    | \bturning\ off\ the\ locking\ correctness\ validator
    | \bcircular\ locking\ dependency
    | \bsleeping\ function\ called
    | \bscheduling\ while\ atomic
    | \b(watchdog|soft\ lockup|hard\ LOCKUP)\b.*\b(stuck|lockup|LOCKUP)
    | \brefcount_t:
    | \b(KASAN|UBSAN|KCSAN|KMSAN|KFENCE):
    | \bkmemleak:.*\b(new\ suspected|Cannot\ allocate|pool\ empty|detector\ disabled)
    | \bpage\ allocation\ failure
    | \bpanicked\ at
    """,
    re.VERBOSE,
)
PANIC = re.compile(r"Kernel panic - not syncing|end Kernel panic")
TIMESTAMP = re.compile(r"^(?:<\d+>)?\[ *(\d+\.\d+)\](?:\[[^\]]*\])? ?")

CONTEXT = 40


class Console:
    """Reads console lines, keeps the ones that show that something is wrong.

    What `allowed` matches is never wrong. What a pattern of `expected` matches has
    to be reported, once: `missing` are the patterns that nothing has matched yet.
    """

    def __init__(self, allowed=(), expected=()):
        self.allowed = [re.compile(pattern) for pattern in allowed]
        self.missing = list(expected)
        self.splats = []
        self.following = 0
        self.panicked = False
        self.guest_time = 0.0

    def line(self, line):
        """Takes one line, returns it without its timestamp."""
        stamp = TIMESTAMP.match(line)
        if stamp:
            self.guest_time = float(stamp.group(1))
            text = line[stamp.end() :]
        else:
            text = line
        if PANIC.search(text):
            self.panicked = True
        if SPLAT.search(text) and not self._is_welcome(text):
            if not self.following:
                self.splats.append([])
            self.following = CONTEXT
        if self.following:
            self.splats[-1].append(line)
            self.following -= 1
        return text

    def _is_welcome(self, text):
        if any(pattern.search(text) for pattern in self.allowed):
            return True
        for pattern in self.missing:
            if re.search(pattern, text):
                self.missing.remove(pattern)
                return True
        return False
