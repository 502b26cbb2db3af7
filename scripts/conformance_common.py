# SPDX-License-Identifier: GPL-2.0
"""What conformance and fuzz-kvm have in common."""

from pathlib import Path
import shutil
import subprocess
import sys
import threading
import time

TOP = Path(__file__).resolve().parent.parent
BUILD = TOP / "build"
PAYLOAD = BUILD / "payload" / "conformance"

# SEAMCALLs that fail make KVM warn and give the VM up: that is what programs are
# for that finalize a TD without vCPUs. Each place warns once, Rust has one for all.
# The misc cgroup warns when C gives back a charge that it was refused.
ALLOWED = (
    r"WARNING: kernel/cgroup/misc\.c:\d+ at misc_cg_(uncharge|cancel_charge)\+",
    r"WARNING: arch/x86/kvm/vmx/tdx\.c:\d+ at tdx_vm_ioctl\+",
    # KVM leaves it to the module to check CPUID leaf 0x1f, whose refusal it does not expect.
    r"WARNING: arch/x86/kvm/vmx/tdx\.c:\d+ at __tdx_td_init\+",
    r"WARNING: arch/x86/kvm/vmx/tdx/kvm_tdx_glue\.h:\d+ at tdx_rust_seamcall_failed\+",
)
# Faster than the defaults, for VMs that come and go; the second does without a
# thread for each.
KERNEL_ARGS = "rcupdate.rcu_expedited=1 kvm.nx_huge_pages=never"

print_lock = threading.Lock()


def say(text):
    with print_lock:
        print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def duration(seconds):
    seconds = int(seconds)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds / 3600:.1f} h"


def boot_command(job, name, config, arguments, timeout):
    """A boot of the machine in which programs may do what they are for."""
    command = [
        TOP / "scripts" / "machine" / "boot", "--job", job, "--name", name, "--config", config,
        "--timeout", str(timeout), "--kernel-args", f"{KERNEL_ARGS} {arguments}",
    ]  # fmt: skip
    for pattern in ALLOWED:
        command += ["--allow", pattern]
    return command


def replay(what, config, arguments=""):
    """Runs one program, of a seed or of a file, tells what it led to, and exits."""
    (PAYLOAD / "replay.json").unlink(missing_ok=True)
    if not what.isdigit():
        if not Path(what).is_file():
            sys.exit(f"error: {what} is neither a seed nor a file")
        shutil.copyfile(what, PAYLOAD / "replay.json")
        what = "file"
    command = boot_command("conformance", "conformance-replay", config, f"{arguments} tdx.replay={what}", 600)
    sys.exit(subprocess.run(command, check=False).returncode)
