"""Resident memory of this process, in bytes, as Linux counts it."""

import gc
import os
import resource
from pathlib import Path


def resident() -> int:
    """Return what is resident now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def forget_peak() -> int:
    """Have the peak counted anew from here, and return what is resident."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return resident()


def peak() -> int:
    """Return the most that was resident at any one time since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next((line for line in lines if line.startswith("VmHWM:")), None)
    if found is None:  # a kernel that does not say: the peak of the whole life of the process
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(found.split()[1]) * 1024
