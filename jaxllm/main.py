"""The command line: `jaxllm VERB ...`. Each verb imports what it needs, so that --help is quick."""

import argparse
import errno
import os
import select
import sys

from jaxllm import huge_pages
from jaxllm.errors import GuardStop, InputError, RunError

_FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG

_EXAMPLES = (
    'jaxllm run --config=experiments/lifecycle.py --workdir=runs/life',
    'jaxllm chat --workdir=runs/life',
    'jaxllm run --config=experiments/pretrain.py:smoke --workdir=/tmp/smoke',
    'jaxllm run --config=experiments/pretrain.py --config.optim.lr=1e-3 --dry_run',
    'jaxllm finetune --data=my.jsonl --model=smollm2.gguf --workdir=runs/mine')


def _shown(text, examples):
    """What --help says: `text` first, runnable examples last."""
    return dict(description=text, epilog='\n  '.join(('examples:', *examples)), allow_abbrev=False,
                formatter_class=argparse.RawDescriptionHelpFormatter)


def _parser():
    parser = argparse.ArgumentParser(prog='jaxllm', **_shown(
        'The whole life of a language model. `jaxllm VERB --help` has more.', _EXAMPLES))
    verbs = parser.add_subparsers(dest='verb', metavar='VERB', required=True)

    def verb(name, text, *examples):
        return verbs.add_parser(name, help=text, **_shown(text, examples))

    run = verb('run', 'run the stage of a config file, or go on with it',
               'jaxllm run --config=experiments/lifecycle.py --workdir=runs/life',
               'jaxllm run --config=experiments/sft.py --config.init_from=runs/life/base '
               '--workdir=runs/sft',
               'jaxllm run --config=experiments/pretrain.py --config.optim.lr=1e-3 --dry_run',
               'jaxllm run --config=runs/life/sft/config.json --config.seed=1 --workdir=runs/sft1')
    run.usage = ('jaxllm run --config=FILE.py[:ARG]|RUN/config.json '
                 '[--config.section.key=value ...] --workdir=DIR [--dry_run]')
    run.add_argument('--workdir', help='the run directory, made if it is new')
    run.add_argument('--dry_run', action='store_true',
                     help='print the resolved config and what it would cost; run nothing')
    run.add_argument('--coordinator', default='', metavar='HOST:PORT',
                     help='of a run with several processes outside a cluster that JAX knows')
    run.add_argument('--num_processes', type=int, default=1)
    run.add_argument('--process_id', type=int, default=0)
    run.add_argument('--stop_at_eof', action='store_true',
                     help='stop, as at SIGTERM, when standard input ends: when the process that '
                     'started this one is gone')
    _finetune(verb)
    sweep = verb('sweep', 'run all arms of a config file with several seeds, or go on with them',
                 'jaxllm sweep --config=experiments/ablations/long_tail.py --workdir=runs/tail',
                 'jaxllm sweep --config=experiments/pretrain.py --seeds=0,1,2 --dry_run')
    sweep.usage = ('jaxllm sweep --config=FILE.py[:ARG] [--config.section.key=value ...] '
                   '--workdir=DIR [--seeds=0,1,2] [--jobs=2] [--arm=I] [--dry_run]')
    sweep.add_argument('--workdir', help='the directory of the sweep, made if it is new')
    sweep.add_argument('--seeds', default='', metavar='0,1,2',
                       help="values of config.seed; default: the file's SEEDS, or 0,1,2")
    sweep.add_argument('--jobs', type=int,
                       help='processes at once; default: 2, or 1 on an accelerator or one core')
    sweep.add_argument('--arm', type=int, metavar='I',
                       help='run only what line I of --dry_run needs: for the tasks of a cluster, '
                       'which share --workdir')
    sweep.add_argument('--dry_run', action='store_true',
                       help='print the arms and their jobs; run nothing')
    chat = verb('chat', 'talk to a chat model, or let a base model continue texts, streaming',
                'jaxllm chat --workdir=runs/life',
                'jaxllm chat --model=smollm2.gguf --prompt="What is the capital of France?" '
                '--temperature=0')
    one = chat.add_mutually_exclusive_group(required=True)
    one.add_argument('--workdir', default='', help='a run, the base or an adapter of one')
    one.add_argument('--model', default='', metavar='FILE.gguf|FOLDER',
                     help='a model file, or a folder of Hugging Face weights')
    chat.add_argument('--prompt', help='answer this one prompt on standard output, then leave')
    chat.add_argument('--system', default='', help='a system prompt')
    chat.add_argument('--messages', default='', metavar='FILE.json',
                      help='answer the conversation in this file, then leave')
    chat.add_argument('--max_new_tokens', type=int, default=200)
    chat.add_argument('--temperature', type=float, default=0.8)
    chat.add_argument('--top_k', type=int, default=0)
    chat.add_argument('--top_p', type=float, default=0.95)
    chat.add_argument('--min_p', type=float, default=0.0)
    chat.add_argument('--repetition_penalty', type=float, default=1.0)
    chat.add_argument('--stop', action='append', default=[], help='a stop string; repeatable')
    chat.add_argument('--seed', type=int, default=0)
    _label(verb)
    inspect = verb('inspect', 'look inside a training step of a run: losses, gradients, attention',
                   'jaxllm inspect --workdir=runs/life/base --html=inside.html',
                   'jaxllm inspect --workdir=runs/life/base --text="The home of"')
    inspect.add_argument('--workdir', required=True)
    inspect.add_argument('--text', default='', help='look at this text; default: the next batch')
    inspect.add_argument('--html', default='', metavar='FILE', help='write a page as well')
    _artefacts(verb)
    report = verb('report', 'write report.html of a run, a chain or a sweep, finished or not',
                  'jaxllm report runs/life', 'jaxllm report runs/tail')
    report.add_argument('workdir')
    return parser


def _artefacts(verb):
    tree = verb('lineage', 'draw what an artefact was made from, back to the data',
                'jaxllm lineage runs/life/aligned', 'jaxllm lineage runs/life/aligned --json')
    tree.add_argument('path', metavar='RUN|FILE.gguf|FOLDER')
    tree.add_argument('--json', action='store_true', help='for machines')
    back = verb('revert', 'print the path of the model that a run was made from, if it is intact',
                'jaxllm revert runs/life/aligned',
                'jaxllm chat --workdir=$(jaxllm revert runs/mine/sft)')
    back.add_argument('path', metavar='RUN')
    back.add_argument('--verify', action='store_true', help='also read and hash every tensor')
    gone = verb('delete', 'delete a run, unless others were made from it',
                'jaxllm delete runs/smoke', 'jaxllm delete runs/old --search=runs --yes')
    gone.add_argument('path', metavar='RUN')
    gone.add_argument('--force', action='store_true', help='even if others were made from it')
    gone.add_argument('--yes', action='store_true', help='do not ask')
    gone.add_argument('--search', action='append', default=[], metavar='DIR',
                      help='look for descendants here, too; repeatable')
    out = verb('export', 'write any model as Hugging Face safetensors or GGUF',
               'jaxllm export runs/life/sft --format=hf --out=sft_hf',
               'jaxllm export runs/mine/sft --format=gguf --kind=q8_0 --out=mine.gguf')
    out.add_argument('path', metavar='RUN|FILE.gguf|FOLDER')
    out.add_argument('--out', required=True, metavar='FOLDER|FILE.gguf', help='must be new')
    out.add_argument('--format', choices=('hf', 'gguf'), default='hf')
    out.add_argument('--kind', default='', metavar='KIND',
                     help='hf: float32, bfloat16 or float16; gguf: f16, q8_0 or f32')
    out.add_argument('--checkpoint', choices=('best', 'last'), default='best')
    rack = verb('adapters', 'several adapters on one base: add, list, activate, swap, remove, '
                'merge, export',
                'jaxllm adapters add runs/rack mine --run=runs/mine/sft',
                'jaxllm adapters list runs/rack', 'jaxllm adapters activate runs/rack mine',
                'jaxllm adapters merge runs/mine/sft --format=gguf --out=merged.gguf',
                'jaxllm adapters export runs/mine/sft --out=mine_peft')
    rack.add_argument('action', choices=('add', 'list', 'activate', 'swap', 'remove', 'merge',
                                         'export'))
    rack.add_argument('path', metavar='RACK|RUN', help='a directory of adapters, or one LoRA run')
    rack.add_argument('name', nargs='?', default='', help='of an adapter')
    rack.add_argument('--run', default='', help='add: a run that trained an adapter')
    rack.add_argument('--peft', default='', metavar='FOLDER', help='add: a PEFT adapter')
    rack.add_argument('--base', default='', metavar='PATH', help='add: the base of a PEFT adapter')
    rack.add_argument('--none', action='store_true', help='activate: the bare base')
    rack.add_argument('--out', default='', metavar='FOLDER', help='merge, export: must be new')
    rack.add_argument('--format', choices=('hf', 'gguf'), default='hf', help='merge')
    rack.add_argument('--kind', default='', help='merge: as of export')
    data = verb('data', 'look at a record as the model sees it; fetch real data',
                'jaxllm data show experiments/finetune_example.jsonl', 'jaxllm data fetch',
                'jaxllm data fetch smollm2')
    actions = data.add_subparsers(dest='action', metavar='ACTION', required=True)
    text = 'a record with its tokens coloured by role and weight'
    show = actions.add_parser('show', help=text, **_shown(text, (
        'jaxllm data show experiments/finetune_example.jsonl --record=3',
        'jaxllm data show my.jsonl --model=smollm2.gguf')))
    show.add_argument('file', help='.jsonl, .jsonl.gz, .csv or .parquet')
    show.add_argument('--model', default='', metavar='RUN|FILE.gguf|FOLDER',
                      help='whose tokenizer and template; default: bytes and ChatML')
    show.add_argument('--template', default='', metavar='NAME|FILE.jinja')
    show.add_argument('--record', type=int, default=1, help='which one, from 1')
    text = 'download real data or a small model, print its path'
    fetch = actions.add_parser('fetch', help=text, **_shown(text, (
        'jaxllm data fetch', 'jaxllm data fetch smollm2')))
    fetch.add_argument('name', nargs='?', default='', help='without one: what there is')


def _finetune(verb):
    own = verb('finetune', 'fine-tune a model on your own data: five steps, one report',
               'jaxllm finetune --data=my.jsonl --model=smollm2.gguf --workdir=runs/mine',
               'jaxllm finetune --data=experiments/finetune_example.jsonl --model=smollm2.gguf '
               '--dry_run')
    own.add_argument('--data', default='', metavar='FILE',
                     help='.jsonl, .csv or .parquet of pairs, conversations or preferences')
    own.add_argument('--model', action='append', default=[], metavar='FILE.gguf|FOLDER|RUN',
                     help='the base; repeat it to compare several before training')
    own.add_argument('--workdir', help='the directory of the result, made if it is new')
    own.add_argument('--method', default='', choices=('', 'lora', 'qlora', 'full'),
                     help='default: lora')
    own.add_argument('--held_out', default='', metavar='FILE', help='records to evaluate on')
    own.add_argument('--template', default='', metavar='NAME|FILE.jinja')
    own.add_argument('--epochs', type=float, default=0.0)
    own.add_argument('--lr', type=float, default=0.0)
    own.add_argument('--rank', type=int, default=0)
    own.add_argument('--replay', type=float, default=0.0, metavar='SHARE',
                     help='of ordinary text beside your data, against forgetting')
    own.add_argument('--drop', default='', metavar='KIND,KIND',
                     help='also drop near_duplicate, contradiction, pii, language, length, '
                     'damaged, refusal')
    own.add_argument('--mask_pii', action='store_true', help='replace personal data')
    own.add_argument('--sweep', action='store_true',
                     help='also train with one setting changed at a time')
    own.add_argument('--dry_run', action='store_true',
                     help='look at the data, print settings, memory and time; train nothing')
    own.set_defaults(coordinator='', num_processes=1, process_id=0)


def _label(verb):
    own = verb('label', 'people rank responses, blind: in a local web page or a terminal',
               'jaxllm label --model=runs/life/sft --model=runs/life/aligned '
               '--prompts=world:pairs --workdir=labels/mine',
               'jaxllm label --workdir=labels/mine --report --export=data/mine')
    own.add_argument('--workdir', default='', help='of items and answers, made if it is new')
    own.add_argument('--model', action='append', default=[], metavar='RUN[@STEP]|FILE.gguf|FOLDER',
                     help='whose responses are compared; repeatable')
    own.add_argument('--prompts', default='', metavar='FILE|world:NAME',
                     help='.jsonl, .csv or .parquet with a prompt or messages')
    own.add_argument('--responses', default='', metavar='FILE.jsonl',
                     help='ready-made {prompt, responses[, sources]} in place of models')
    own.add_argument('--samples', type=int, default=2, help='responses of each model to a prompt')
    own.add_argument('--max_items', type=int, default=0, help='so many, drawn by --seed; 0 = all')
    own.add_argument('--split', default='test', help='of a world or TFDS dataset')
    own.add_argument('--world', default='nano', metavar='SCALE')
    own.add_argument('--world_seed', type=int, default=0)
    own.add_argument('--system', default='', help='a system prompt')
    own.add_argument('--temperature', type=float, default=1.0)
    own.add_argument('--top_p', type=float, default=1.0)
    own.add_argument('--max_new_tokens', type=int, default=200)
    own.add_argument('--seed', type=int, default=0)
    own.add_argument('--criteria', default='helpful,safe,accurate,clear',
                     help='what raters are asked, one at a time')
    own.add_argument('--port', type=int, default=8000, help='of 127.0.0.1; 0 = any free one')
    own.add_argument('--terminal', action='store_true', help='label here, not in a browser')
    own.add_argument('--rater', default='', metavar='NAME', help='--terminal: who labels')
    own.add_argument('--criterion', default='', help='--terminal: default: the first one')
    own.add_argument('--report', action='store_true',
                     help='print agreement of raters, position bias, ties and wins; label nothing')
    own.add_argument('--export', default='', metavar='DIR',
                     help='write pairs and rankings as TFDS and JSON lines; label nothing')
    own.add_argument('--consensus', action='store_true',
                     help='--export: also one ranking of each item by all raters')
    own.add_argument('--license', default='', help='--export: for the data card')
    own.add_argument('--convert', default='', metavar='FILE|tfds:NAME|world:NAME',
                     help='--export from pairs, rankings, ratings or HH-RLHF instead of labels')


def _dispatch(args, rest):
    if rest and args.verb not in ('run', 'sweep', 'finetune'):
        raise InputError(f'{rest[0]!r} is unknown; see jaxllm {args.verb} --help')
    if args.verb == 'run':
        from jaxllm.stages import run
        run.run(args, rest)
    elif args.verb == 'sweep':
        from jaxllm.stages import sweep
        sweep.sweep(args, rest)
    elif args.verb == 'finetune':
        from jaxllm.stages import finetune
        finetune.finetune(args, rest)
    elif args.verb == 'chat':
        from jaxllm.stages import chat
        chat.chat(args)
    elif args.verb in ('lineage', 'revert', 'delete'):
        from jaxllm.stages import ancestry
        {'lineage': ancestry.show, 'revert': ancestry.revert, 'delete': ancestry.delete}[
            args.verb](args)
    elif args.verb in ('export', 'adapters'):
        from jaxllm.stages import adapters
        {'export': adapters.export, 'adapters': adapters.adapters}[args.verb](args)
    elif args.verb == 'data':
        from jaxllm.stages import data
        {'show': data.show, 'fetch': data.fetch}[args.action](args)
    elif args.verb == 'label':
        from jaxllm.stages import label
        label.label(args)
    elif args.verb == 'inspect':
        from jaxllm.stages import inspect
        inspect.inspect(args)
    elif args.verb == 'report':
        from jaxllm.report import directory
        for path in directory.write_reports(args.workdir):
            print(path)
        if verdict := directory.verdict_text(args.workdir):
            print(verdict)


def _reader_is_gone():
    """Whether nobody reads what is printed any more, as after `| head`; then nothing is."""
    ends = select.poll()
    ends.register(sys.stdout.fileno(), 0)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in ends.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def main(argv=None):
    """Runs a verb. Returns the exit code: 0 done, 1 the surroundings failed, 2 bad input, 3 stopped
    by a guard, 130 and 143 stopped by a signal after saving, 141 its output is read no more."""
    args, rest = _parser().parse_known_args(argv)
    try:
        _dispatch(args, rest)
        sys.stdout.flush()
    except (InputError, GuardStop, RunError) as error:
        print(f'jaxllm: {error}', file=sys.stderr)
        return {InputError: 2, GuardStop: 3, RunError: 1}[type(error)]
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        return 141
    except OSError as error:
        if error.errno not in _FULL:
            raise
        print(f'jaxllm: {error}; free space, then run the same command again to go on',
              file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\njaxllm: stopped', file=sys.stderr)
        return 130
    return 0


def console():
    """The command `jaxllm`."""
    huge_pages.restart()
    return main()


if __name__ == '__main__':
    sys.exit(console())
