"""A small label directory, its server in another process, and answers for tests."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

from jaxllm.feedback import items
from jaxllm.feedback.labels import Labels

ROOT = pathlib.Path(__file__).parents[2]
_KEYS = itertools.count()


def make(workdir, sizes=(3, 2, 2), criteria=('helpful', 'safe')):
    """Writes a directory whose item i has sizes[i] responses 'i-0', 'i-1', ... by 'm0', 'm1' ..."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / 'label.json').write_text(json.dumps({'criteria': list(criteria), 'models': []}))
    items.write_items(workdir, [items.Item(
        f'item{i}', ({'role': 'user', 'content': f'question {i}'},),
        tuple(f'{i}-{s}' for s in range(size)), tuple((f'm{s}',) for s in range(size)))
        for i, size in enumerate(sizes)])
    return workdir


def rate(labels, rater, item, ranks, criterion='helpful', **more):
    """Stores ranks that are in the order of item.responses."""
    shown = labels.shown(rater, item)
    return labels.rate(key=f'key{next(_KEYS)}', rater=rater, item=item, criterion=criterion,
                       ranks=[ranks[i] for i in shown], **more)


def labelled(workdir, said, **options):
    """Labels of a directory with {(rater, item): ranks}."""
    labels = Labels(make(workdir, **options))
    for (rater, item), ranks in said.items():
        rate(labels, rater, item, ranks)
    return labels


def serve(workdir, port=0):
    """(process of the server, its address)."""
    code = ('import sys, pathlib; from jaxllm.feedback import labels, server\n'
            'web = server.make_server(labels.Labels(pathlib.Path(sys.argv[1])), int(sys.argv[2]))\n'
            'print(web.port, flush=True); web.serve_forever()')
    process = subprocess.Popen([sys.executable, '-c', code, str(workdir), str(port)],
                               stdout=subprocess.PIPE, text=True, cwd=ROOT,
                               env=os.environ | {'PYTHONPATH': str(ROOT)})
    line = process.stdout.readline()
    assert line, 'the server did not start'
    return process, int(line)


def stop(process):
    process.kill()
    process.wait()
    process.stdout.close()
