"""The verb `label`: people rank responses, in a browser or a terminal; then report and export."""

import dataclasses
import json
import pathlib
import random

from jaxllm.config import one_builder, write_atomic
from jaxllm.data.dialogues import DialogueSpec
from jaxllm.data.preferences import ComparisonSpec, read_comparisons
from jaxllm.data.rejects import Rejects
from jaxllm.errors import InputError
from jaxllm.feedback import export, items, labels as labels_module, server, terminal
from jaxllm.stages import label_report, label_samples
from jaxllm.train.progress import stage as say
from jaxllm.world.spec import SCALES, Intervention, WorldSpec


def label(args):
    """Makes the items if there are none, then labels, reports, exports or converts."""
    if args.convert:
        _convert(args)
        return
    if not args.workdir:
        raise InputError('no --workdir: the directory of items and answers, made if it is new')
    workdir = pathlib.Path(args.workdir)
    if args.report or args.export:
        labels = labels_module.Labels(workdir)
        if args.report:
            print(label_report.write(labels))
        if args.export:
            _export(labels, args)
        _warn(labels)
        return
    rater = ''
    if args.terminal:
        rater = labels_module.rater_name(args.rater or terminal.ask_rater(input))
    elif args.rater:
        raise InputError('--rater is for --terminal; the web page asks each rater')
    make_items(workdir, args)
    labels = labels_module.Labels(workdir)
    _warn(labels)
    if args.terminal:
        criterion = args.criterion or labels.criteria[0]
        if criterion not in labels.criteria:
            raise InputError(f'--criterion={criterion}; expected one of '
                             f'{", ".join(labels.criteria)}')
        terminal.run(labels, rater, criterion, read=input, write=print)
        return
    web = server.make_server(labels, args.port)
    print(f'{len(labels.items)} items: http://{server.HOST}:{web.port}/  (Ctrl-C ends it; answers '
          f'are stored at once)', flush=True)
    web.serve_forever()


def make_items(workdir, args):
    """Writes items.jsonl and label.json once; on a restart checks that the same is asked for.

    Raises:
        InputError: nothing to label, or the directory was made from something else.
    """
    asked = {'responses': args.responses, 'models': args.model, 'prompts': args.prompts,
             'split': args.split, 'world': args.world, 'world_seed': args.world_seed,
             'samples': args.samples, 'max_items': args.max_items, 'seed': args.seed,
             'system': args.system, 'temperature': args.temperature, 'top_p': args.top_p,
             'max_new_tokens': args.max_new_tokens,
             'criteria': [name.strip() for name in args.criteria.split(',') if name.strip()]}
    with one_builder(workdir / items.FILE):
        if (workdir / items.FILE).exists():
            _check_same(workdir, asked, args)
            return
        if bool(args.model) == bool(args.responses):
            raise InputError(f'{workdir} holds nothing to label: give --model=RUN with '
                             '--prompts=FILE.jsonl, or --responses=FILE.jsonl with {prompt, '
                             'responses}; one of the two')
        if args.model and not args.prompts:
            raise InputError('--model without --prompts; give --prompts=FILE.jsonl, or '
                             '--prompts=world:NAME')
        if not asked['criteria'] or len(set(asked['criteria'])) < len(asked['criteria']):
            raise InputError(f'--criteria={args.criteria}; expected different names with commas')
        found, left_out = _found(args)
        if not found:
            raise InputError(f'no item to label: {left_out}')
        # items.jsonl comes last: it marks that the directory is whole.
        write_atomic(workdir / labels_module.SETTINGS,
                     json.dumps(asked | {'items': len(found), 'left_out': left_out}, indent=1))
        items.write_items(workdir, found)
    lost = {reason: count for reason, count in left_out.items() if count}
    say(f'{len(found)} items in {workdir}' + (f'; left out: {lost}' if lost else ''))


def _found(args):
    rejects = Rejects()
    if args.responses:
        spec = _spec(args, args.responses)
        found, equal = items.read_ready(spec, rejects)
        if bad := rejects.describe(spec.name):
            say(bad)
        return _some(found, args), {'unreadable': rejects.count(spec.name),
                                    'fewer than two texts': equal}
    spec = _spec(args, args.prompts)
    prompts = _some(items.read_prompts(spec, rejects), args)
    if bad := rejects.describe(spec.name):
        say(bad)
    found, left_out = label_samples.sample(prompts, args, say)
    return found, {'unreadable': rejects.count(spec.name), **left_out}


def _some(found, args):
    """--max_items of them, drawn by --seed, in their order."""
    if not 0 < args.max_items < len(found):
        return found
    return [found[i] for i in sorted(random.Random(args.seed).sample(range(len(found)),
                                                                     args.max_items))]


def _spec(args, path):
    world = None
    if path.startswith('world:'):
        if args.world not in SCALES:
            raise InputError(f'--world={args.world}; expected one of {", ".join(SCALES)}')
        world = WorldSpec(args.world_seed, args.world, Intervention('none', '', 0, 0.0, 1.0, ''))
    return DialogueSpec('label', path, split=args.split, world=world)


def _check_same(workdir, asked, args):
    """Raises InputError if what was given on the command line is not what the items come from."""
    file = workdir / labels_module.SETTINGS
    if not (args.model or args.responses or args.prompts) or not file.exists():
        return  # only the directory was named: go on with what is there
    old = json.loads(file.read_text('utf-8'))
    changed = [f'{name} {old[name]!r} -> {value!r}' for name, value in asked.items()
               if name in old and old[name] != value]
    if changed:
        raise InputError(f'{workdir} was made with other settings ({"; ".join(changed)}); use a '
                         'new --workdir, or give --workdir alone to go on')


def _warn(labels):
    labels.answers()
    for problem in labels.store.problems:
        say(problem)


def _export(labels, args):
    found, empty = export.comparisons(labels)
    notes = [f'{empty} answers about responses without text are left out.'] if empty else []
    made = ', '.join(labels.settings['models']) if labels.settings else ''
    origin = (f'By `jaxllm label`: {len({c.rater for c in found})} raters ranked responses'
              f'{f" of {made}" if made else ""}, blind and in random order.')
    counts = export.write(pathlib.Path(args.export), found, title='Human comparisons',
                          origin=origin, license=args.license or 'not chosen',
                          notes=notes, consensus=args.consensus)
    _say_counts(args.export, counts)


def _convert(args):
    """--convert: any format of preferences into the canonical datasets."""
    if not args.export:
        raise InputError('--convert needs --export=DIR, where the datasets go')
    rejects = Rejects(f'{args.export}.rejects.jsonl')
    spec = ComparisonSpec(**vars(dataclasses.replace(_spec(args, args.convert), name='import')))
    found = list(read_comparisons(spec, rejects))
    bad = rejects.describe('import')
    notes = [f'{rejects.count("import")} records could not be read.'] if bad else []
    counts = export.write(pathlib.Path(args.export), found, title='Imported comparisons',
                          origin=f'Read from `{args.convert}` by `jaxllm label --convert`.',
                          license=args.license or 'not chosen', notes=notes,
                          consensus=args.consensus)
    if bad:
        say(f'{bad}; all are listed in {args.export}.rejects.jsonl')
    else:
        pathlib.Path(f'{args.export}.rejects.jsonl').unlink()
    _say_counts(args.export, counts)


def _say_counts(folder, counts):
    for name, found in counts.items():
        print(f'{folder}/tfds/{name}: '
              + ('  '.join(f'{split} {n:,}' for split, n in found.items()) or 'no row'))
