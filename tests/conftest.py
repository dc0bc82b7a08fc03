"""Test hygiene: eight host devices, silent broadcasting is an error, warnings are errors."""

import os

os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '')
                           + ' --xla_force_host_platform_device_count=8'
                           # Compiling is most of the time that tiny programs take.
                           + ' --xla_backend_optimization_level=0')
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_addoption(parser):
    parser.addoption('--run-tpu-aot', action='store_true',
                     help='run the tests that compile for a TPU topology (extra `tpu`)')


def pytest_collection_modifyitems(config, items):
    if config.getoption('--run-tpu-aot'):
        return
    skip = pytest.mark.skip(reason='compiles for a TPU topology: needs the extra `tpu`, '
                                   'run with --run-tpu-aot (`.ci/run --full` does)')
    for item in items:
        if item.get_closest_marker('tpu_aot'):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def repeatable_and_private(monkeypatch, tmp_path):
    """Each test has a cache folder of its own, so that no test depends on another."""
    monkeypatch.setenv('JAXLLM_CACHE', str(tmp_path / 'cache'))
