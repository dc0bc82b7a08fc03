"""The commands start themselves again, once, with what the C library reads at the start."""

import os
import subprocess
import sys

import pytest

CODE = """
import os
from jaxllm import huge_pages
huge_pages.restart()
print(os.getpid(), os.environ['GLIBC_TUNABLES'], *os.sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='a setting of Linux')
@pytest.mark.parametrize('before, after', [
    ('', 'glibc.malloc.hugetlb=1'),
    ('glibc.malloc.check=0', 'glibc.malloc.check=0:glibc.malloc.hugetlb=1'),
    ('glibc.malloc.hugetlb=0', 'glibc.malloc.hugetlb=0')])
def test_a_command_starts_again_with_the_same_arguments(before, after):
    env = os.environ | {'GLIBC_TUNABLES': before}
    if not before:
        del env['GLIBC_TUNABLES']
    process = subprocess.Popen([sys.executable, '-c', CODE, 'a b', '--c'], env=env, text=True,
                               stdout=subprocess.PIPE)
    assert process.communicate(timeout=60)[0] == f'{process.pid} {after} a b --c\n'
