"""Where artefacts come from and what was made of them: the verbs `lineage`, `revert`, `delete`."""

import dataclasses
import fcntl
import json
import pathlib
import shutil
import sys

from jaxllm.errors import InputError
from jaxllm.sharding import make_mesh
from jaxllm.stages import base as bases
from jaxllm.stages import lineage
from jaxllm.train.checkpoint import has_checkpoint

_COUNTED = 'documents', 'comparisons', 'answers', 'tokens'  # in summary.json, as the stage has them


@dataclasses.dataclass(frozen=True)
class Node:
    """An artefact in the tree of its ancestors. problem: what is wrong with it, or ''.
    parents: [(role, Node)]; data: one line per source."""
    path: pathlib.Path
    title: str
    problem: str = ''
    parents: tuple = ()
    data: tuple = ()


def ancestors(path, seen=()):
    """The Node of a run or model file, with all it was made from.

    Raises:
      InputError: nothing there that has a lineage.
    """
    path = pathlib.Path(path).resolve()
    if not path.exists():
        raise InputError(f'{path} does not exist; give a run directory or a model file')
    if not (path / 'lineage.json').exists():
        foreign = bases.open_base(path).foreign
        if foreign is None:
            raise InputError(f'{path} has no lineage.json; give a run that has begun')
        return Node(path, f'model file, {foreign.family}, sha256 {foreign.fingerprint[:12]}')
    record = lineage.read_lineage(path)
    parents = tuple((role, _parent(parent, (*seen, path)))
                    for role, parent in record['parents'].items())
    return Node(path, _title(path, record), parents=parents, data=_data(path, record))


def _parent(parent, seen):
    path = pathlib.Path(parent['run'])
    if path in seen:
        return Node(path, 'a run among its own ancestors', 'the lineage goes in a circle')
    if not path.exists():
        return Node(path, f'fingerprint {parent["fingerprint"][:12]}', 'not there any more')
    try:
        node, problem = ancestors(path, seen), _problem(path, parent)
    except (InputError, json.JSONDecodeError) as error:
        return Node(path, f'fingerprint {parent["fingerprint"][:12]}', f'cannot be read: {error}')
    return dataclasses.replace(node, title=f'{node.title}, step {parent["step"]:,} was used'
                               if parent['step'] else node.title, problem=problem)


def _problem(path, parent):
    """What keeps a parent from being what it was, or ''."""
    if (path / 'lineage.json').exists():
        now = lineage.read_lineage(path)['fingerprint']
        if now != parent['fingerprint']:
            return (f'is another run by now: fingerprint {now[:12]}, then '
                    f'{parent["fingerprint"][:12]}')
        if parent['step'] and not (path / 'checkpoints' / str(parent['step'])).exists():
            return f'its checkpoint of step {parent["step"]:,} is gone'
        return ''
    now = bases.open_base(path).fingerprint
    return '' if now == parent['fingerprint'] else (
        f'is another file by now: sha256 {now[:12]}, then {parent["fingerprint"][:12]}')


def _title(path, record):
    parts = [record['stage'].rpartition('.')[2]]
    steps = sorted(int(p.name) for p in (path / 'checkpoints').glob('*') if p.name.isdigit())
    parts += [f'step {steps[-1]:,}'] if steps else []
    if 'num_params' in record:
        trained = record.get('num_trained', record['num_params'])
        parts.append(f'{record["num_params"]:,} parameters' if trained == record['num_params']
                     else f'{trained:,} of {record["num_params"]:,} parameters trained')
    parts.append(f'fingerprint {record["fingerprint"][:12]}')
    parts += [f'code {record["git"]}'] if record.get('git') else []
    return ', '.join(parts)


def _data(path, record):
    """A line about each source of data and about the tokenizer."""
    lines, file = [], path / 'data' / 'summary.json'
    for row in json.loads(file.read_text()) if file.exists() else ():
        licence = f', {row["license"]}' if row.get('license') else ''
        counts = ', '.join(f'{row[name]:,} {name}' for name in _COUNTED if name in row)
        lines.append(f'data {row["source"]}: {row["path"]}, {counts}{licence}')
    lines += [f'{name} {record[name][:12]}' for name in ('tokenizer', 'template', 'world')
              if name in record]
    return tuple(lines)


def draw(node, role='', prefix='', last=True, plain=False, drawn=None):
    """The tree as text, the artefact first and what it came from below it; what has been `drawn`
    (paths) is not drawn again."""
    drawn = set() if drawn is None else drawn
    bend, tee, bar = ('`-- ', '|-- ', '|   ') if plain else ('└── ', '├── ', '│   ')
    head = '' if not role else f'{prefix}{bend if last else tee}'
    label = f'{role}: ' if role else ''
    problem = f'   !! {node.problem}' if node.problem else ''
    lines = [f'{head}{label}{node.path}{problem}']
    inner = prefix + ('' if not role else ('    ' if last else bar))
    if node.path in drawn and (node.parents or node.data):
        return [*lines, f'{inner}    {node.title}; see above']
    drawn.add(node.path)
    children = len(node.parents)
    lines.append(f'{inner}{bar if children or node.data else "    "}{node.title}')
    for i, line in enumerate(node.data):
        end = i == len(node.data) - 1 and not children
        lines.append(f'{inner}{bend if end else tee}{line}')
    for i, (name, parent) in enumerate(node.parents):
        lines += draw(parent, name, inner, i == children - 1, plain, drawn)
    return lines


def as_json(node):
    return {'path': str(node.path), 'title': node.title, 'problem': node.problem,
            'data': list(node.data),
            'parents': {role: as_json(parent) for role, parent in node.parents}}


def show(args):
    """The verb `lineage`."""
    node = ancestors(args.path)
    if args.json:
        print(json.dumps(as_json(node), indent=1, ensure_ascii=False))
        return
    plain = 'utf' not in (sys.stdout.encoding or '').lower()
    print('\n'.join(draw(node, plain=plain)))


def revert(args):
    """The verb `revert`: prints the path of what a run was made from, if that is still there."""
    path = pathlib.Path(args.path).resolve()
    if not (path / 'lineage.json').exists():
        raise InputError(f'{path} is no run that has begun (no lineage.json there), so that '
                         'nothing is known of what came before it')
    parents = lineage.read_lineage(path)['parents']
    if 'init_from' not in parents:
        raise InputError(f'{path} was trained from random weights: there is no model before it to '
                         'go back to')
    parent = parents['init_from']
    home = pathlib.Path(parent['run'])
    problem = 'is not there any more' if not home.exists() else _problem(home, parent)
    if problem:
        adapter = _is_adapter(path)
        why = ('an adapter alone cannot bring its base back' if adapter else
               'all weights of this run were trained, and the old ones cannot be computed from the '
               'new ones')
        raise InputError(f'{path} came from {home}, which {problem}; {why}: bring it back from a '
                         'copy')
    if args.verify:
        _verify(parent)
    what = ('the base without the adapter; the run changed nothing of it' if _is_adapter(path) else
            'the model as it was before all its weights were trained')
    print(f'{home} is {what} (step {parent["step"]:,})' if parent['step'] else f'{home} is {what}',
          file=sys.stderr)
    print(home)


def _is_adapter(path):
    config = json.loads((path / 'config.json').read_text())
    return bool('lora' in config and config['lora']['rank'])


def _verify(parent):
    """Reads every tensor of the parent, all of its model's shapes; says their hash."""
    base = bases.open_base(parent['run'], checkpoint=parent['step'])
    total = bases.tensor_hashes(bases.load_plain(base, make_mesh()))
    print(f'{len(total)} tensors read; sha256 of all: {bases.hash_of(total)}', file=sys.stderr)


def descendants(path, search=()):
    """[(role, run)] of the runs that were made from `path`, found by its own list of them and by
    looking through the folder that holds it, and those in `search`."""
    path = pathlib.Path(path).resolve()
    places = {pathlib.Path(line) for line in _listed(path)}
    for root in (path.parent, *map(pathlib.Path, search)):
        places |= {file.parent for file in root.glob('**/lineage.json')}
    found = []
    for place in sorted(places):
        if place.resolve() == path or not (place / 'lineage.json').exists():
            continue
        for role, parent in lineage.read_lineage(place)['parents'].items():
            if pathlib.Path(parent['run']).resolve() == path:
                found.append((role, place))
    for root in (path.parent, *map(pathlib.Path, search)):
        for file in sorted(root.glob(f'**/{bases.RACK_FILE}')):
            if pathlib.Path(json.loads(file.read_text())['base']['path']).resolve() == path:
                found.append(('base of a rack of adapters', file.parent))
    return found


def _listed(path):
    file = path / lineage.DESCENDANTS
    lines = file.read_text().splitlines() if file.exists() else ()
    return [json.loads(line)['run'] for line in lines]


def delete(args):
    """The verb `delete`."""
    path = pathlib.Path(args.path).resolve()
    if not (path / 'config.json').exists() or not (path / '.lock').exists():
        raise InputError(f'{path} is no run directory (no config.json and .lock there); nothing '
                         'was deleted')
    children = descendants(path, args.search)
    if children and not args.force:
        named = ', '.join(f'{place} ({role})' for role, place in children[:5])
        more = f' and {len(children) - 5} more' if len(children) > 5 else ''
        raise InputError(f'{path} is what other runs were made from: {named}{more}; without '
                         'it they cannot be traced back, nor models be reverted or adapters be '
                         'used. Delete these first, or use --force')
    with open(path / '.lock', 'a+', encoding='utf-8') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f'{path} is in use; stop that run first') from error
        size = sum(file.stat().st_size for file in path.rglob('*') if file.is_file())
        kept = 'with' if has_checkpoint(path / 'checkpoints') else 'without'
        if not args.yes:
            if not sys.stdin.isatty():
                raise InputError(f'deleting {path} needs --yes where nobody can be asked')
            answer = input(f'Delete {path} ({size / 1e6:,.0f} MB, {kept} checkpoints)? [y/N] ')
            if answer.strip().lower() not in ('y', 'yes'):
                print('kept')
                return
        shutil.rmtree(path)
    print(f'deleted {path} ({size / 1e6:,.0f} MB)')
