"""Writes the report of a directory, whatever it is: a run, a chain of runs, a sweep."""

import pathlib

from jaxllm.report import chain as chain_report
from jaxllm.report import files
from jaxllm.report import finetune as finetune_report
from jaxllm.report import run as run_report
from jaxllm.report import sweep as sweep_report
from jaxllm.sweep import CHAIN


def write_reports(workdir):
    """Writes the reports in a directory. Returns their paths.

    Raises:
        InputError: nothing there that a report can be made of.
    """
    workdir = pathlib.Path(workdir)
    if (workdir / 'sweep.json').exists():
        return [sweep_report.write_report(workdir)]
    if (workdir / finetune_report.FILE).exists():
        return [finetune_report.write_report(workdir)]
    config = files.read_json(workdir / 'config.json', {})
    if 'stage' in config and config['stage'] == CHAIN:
        return [path for step in config['steps'] if (workdir / step / 'config.json').exists()
                for path in write_reports(workdir / step)] + [chain_report.write_report(workdir)]
    return [run_report.write_report(workdir)]


verdict_text = sweep_report.verdict_text
