"""Memory in pages of 2 MiB, on Linux: the commands start themselves again with it.

A compiled program on CPU allocates the memory of its intermediate results each time it runs, and
the kernel hands it over page by page: a gradient with 0.6 GB of them takes 155,000 page faults of
4 KiB, or 1,300 to 1,800 of 2 MiB (experiments/benchmarks/huge_pages.py). glibc (2.35 and newer)
asks for large pages where this setting says so, which it reads once, when a process starts.
"""

import os
import sys

_SETTING = 'glibc.malloc.hugetlb'


def restart():
    """Replaces this process by itself with large pages; returns where it has them, or cannot."""
    settings = os.environ.get('GLIBC_TUNABLES', '')
    if sys.platform != 'linux' or _SETTING in settings:
        return
    os.environ['GLIBC_TUNABLES'] = ':'.join(filter(None, (settings, f'{_SETTING}=1')))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
