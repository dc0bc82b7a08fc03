"""Test hygiene: eight host devices, silent broadcasting is an error, warnings are errors."""

import os

import quick

os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '')
                           + f' --xla_force_host_platform_device_count=8 {quick.FLAGS}')
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402
import pytest  # noqa: E402

from jaxllm.sharding import make_mesh  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_addoption(parser):
    parser.addoption('--run-tpu-aot', action='store_true',
                     help='run the tests that compile for a TPU topology (extra `tpu`)')
    parser.addoption('--run-long', action='store_true', help='run the tests marked `long`, too')


# Files that take a minute or more, so that the last ones to run are short and no process idles.
LONGEST = ('test_kill.py', 'test_experiments.py', 'test_sft.py', 'test_colabs.py',
           'test_finetune.py', 'test_multiprocess.py', 'test_artefacts.py', 'test_sweep_runs.py')


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.name not in LONGEST)
    reasons = {'tpu_aot': 'compiles for a TPU topology: needs the extra `tpu`, run with '
                          '--run-tpu-aot (`.ci/run --full` does)',
               'long': 'takes a minute or more beside a shorter test of the same, run with '
                       '--run-long (`.ci/run --full` does)'}
    for marker, reason in reasons.items():
        if config.getoption(f'--run-{marker.replace("_", "-")}'):
            continue
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def repeatable_and_private(monkeypatch, tmp_path):
    """Each test has a cache folder of its own, so that no test depends on another."""
    monkeypatch.setenv('JAXLLM_CACHE', str(tmp_path / 'cache'))


@pytest.fixture(scope='module')
def mesh():
    """One device, whatever there is; of modules with pytestmark = usefixtures('mesh')."""
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])) as mesh:
        yield mesh
