"""Whole runs share their compiled programs, so that they take seconds."""

import pytest
import runs


@pytest.fixture(scope='session')
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp('jaxllm-cache')


@pytest.fixture(autouse=True)
def one_cache(monkeypatch, shared_cache, repeatable_and_private):
    """Set after the private cache of every test, in its place."""
    monkeypatch.setenv('JAXLLM_CACHE', str(shared_cache))


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    """Seconds of matrix products per run, for a number that no test looks at."""
    monkeypatch.setattr('jaxllm.train.flops.machine_matmul_peak', lambda dtype: 1e11)


@pytest.fixture(scope='session')
def text(tmp_path_factory):
    """A folder of small text files."""
    return runs.write_text(tmp_path_factory.mktemp('corpus') / 'text')
