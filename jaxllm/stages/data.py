"""The verb `data`: a record as the model sees it, and real data from the package index."""

import os
import sys

from jaxllm.data import chat, fetch as fetching
from jaxllm.data import tokenizer as tokenizers
from jaxllm.data.dialogues import DialogueSpec, read_conversations
from jaxllm.data.rejects import Rejects
from jaxllm.errors import InputError
from jaxllm.stages import base as bases
from jaxllm.stages.dialogues import template_of

_COLOURS = {'system': '35', 'user': '34', 'assistant': '32', 'tool': '33', chat.TEMPLATE: '90'}


def show(args):
    """Prints a record with its tokens coloured by role; what is learned is underlined."""
    base = bases.open_base(args.model, what='--model') if args.model else None
    tokenizer = base.tokenizer() if base else tokenizers.byte_tokenizer()
    template = (template_of(args.template, base, tokenizer) if base else
                chat.load_template(args.template or 'chatml_bos'))
    rejects = Rejects()
    found = list(read_conversations(DialogueSpec('data', args.file), rejects))
    if not 1 <= args.record <= len(found):
        raise InputError(f'--record={args.record}: {args.file} has records 1 to {len(found)}')
    record = found[args.record - 1]
    rendered = chat.render(template, record.messages, tokenizer)
    colours = sys.stdout.isatty() and 'NO_COLOR' not in os.environ
    learned = int(sum(rendered.loss_weights))
    print(f'record {args.record} of {len(found)}, {record.origin}; template {template.name}; '
          f'{len(rendered.ids)} tokens, {learned} of them are learned')
    if bad := rejects.describe('data'):
        print(bad)
    print(tokens_text(rendered, tokenizer, colours))
    if record.rejected:
        print(_printable(f'rejected: {" | ".join(record.rejected)}'))


def tokens_text(rendered, tokenizer, colours):
    """All tokens in a row with a bar between them. In colours: by role, learned ones underlined;
    without: a line per stretch of one role, learned tokens in [brackets]."""
    pieces = [_visible(tokenizer, token) for token in rendered.ids]
    if colours:
        return '|'.join(
            f'\x1b[{_COLOURS[role]}{";4" if weight else ""}m{piece}\x1b[0m'
            for piece, role, weight in zip(pieces, rendered.roles, rendered.loss_weights,
                                           strict=True)) + '\n' + _legend()
    lines, last = [], None
    for piece, role, weight in zip(pieces, rendered.roles, rendered.loss_weights, strict=True):
        if role != last:
            lines.append(f'{role:<10}')
            last = role
        lines[-1] += f' [{piece}]' if weight else f' {piece}'
    return '\n'.join(lines)


def _visible(tokenizer, token):
    text = tokenizer.decode([token], skip_special=False)
    return _printable(text.replace('\n', '⏎').replace('\t', '⇥').replace(' ', '·')) or '∅'


def _printable(text):
    """Text that cannot steer the terminal or turn the direction of writing."""
    return ''.join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _legend():
    names = ' '.join(f'\x1b[{code}m{role}\x1b[0m' for role, code in _COLOURS.items())
    return f'{names}; \x1b[4mlearned\x1b[0m'


def fetch(args):
    """Prints the path of what was fetched, or what there is."""
    if not args.name:
        for name, entry in fetching.manifest().items():
            print(f'{name:<10} {entry.what} ({entry.license}; {entry.package} {entry.version})')
        return
    print(fetching.fetch(args.name))
