"""Conversations as token ids and loss weights, by a Jinja template, in one place for every stage.

What a person wrote is marked before the template sees it (see `marking`). So the rendered text
falls into pieces: a user's text is encoded as ordinary text, in which a typed `<|im_end|>` is just
letters; the template's own text may hold special tokens. Tokens do not reach over the edge of a
piece, and the loss weight of every token is known from where it came, not searched for afterwards.
One space that a template puts before a text goes with the text, as in running text
(`Answer: Paris`), unless a prompt could end between the two.

A template marks what the model is to learn with {% generation %} ... {% endgeneration %}. Of a
template that came with a model and has no marks, the answers of the assistant are learned, each
with what the template puts between its parts and behind it, up to the first special token.
"""

import dataclasses
import datetime
import functools
import hashlib
import itertools
import json
import pathlib
import re

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from jaxllm.config import write_atomic
from jaxllm.data import marking
from jaxllm.data.marking import ROLES
from jaxllm.errors import InputError

TEMPLATE = 'template'  # the role of the template's own text
_FOLDER = pathlib.Path(__file__).parent / 'templates'
_FILE, _ABOUT = 'chat_template.jinja', 'chat_template.json'
_MARKS = re.compile(r'(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})')


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """name: for people. source: Jinja. derived: it came with a model, see the module's text."""
    name: str
    source: str
    derived: bool = False

    @property
    def fingerprint(self):
        return hashlib.sha256(json.dumps([self.source, self.derived]).encode()).hexdigest()

    @functools.cached_property
    def marked(self):
        """Whether it says what is to be learned."""
        return bool(_MARKS.search(self.source))

    @functools.cached_property
    def compiled(self):
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        environment.filters.update(tojson=marking.to_json, trim=marking.trim)
        environment.globals.update(
            raise_exception=_refuse,
            strftime_now=lambda form: datetime.datetime.now().strftime(form))
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateError as error:
            line = f', line {error.lineno}' if hasattr(error, 'lineno') else ''
            raise InputError(f'chat template {self.name}{line}: {error}; correct the Jinja in it'
                             ) from error


@dataclasses.dataclass(frozen=True)
class Rendered:
    """One entry per token: its id, its weight in the loss (0.0 or 1.0), and whose it is (a role of
    ROLES, or 'template')."""
    ids: list
    loss_weights: list
    roles: list


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: puts marks around what stands in it."""
    tags = {'generation'}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
        mark = lambda name: jinja2.nodes.Output([jinja2.nodes.Name(name, 'load')], lineno=line)
        return [mark('_begin_generation'), *body, mark('_end_generation')]


class _Refused(Exception):
    """A template does not take such a conversation."""


def _refuse(message):
    raise _Refused(message)


def bundled():
    """Names of the templates that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob('*.jinja'))


def load_template(name_or_path):
    """A bundled template by name, or one of your own from FILE.jinja.

    Raises:
      InputError: neither such a name nor such a file, or no valid Jinja.
    """
    path = pathlib.Path(name_or_path)
    name = str(name_or_path)
    if name not in bundled():
        if not path.is_file():
            raise InputError(f'chat template {name!r} is unknown; use one of '
                             f'{", ".join(bundled())}, or a FILE.jinja')
        template = ChatTemplate(name, path.read_text(encoding='utf-8'))
    else:
        template = ChatTemplate(name, (_FOLDER / f'{name}.jinja').read_text(encoding='utf-8'))
    template.compiled  # noqa: B018  (bad Jinja is found now)
    return template


def save_template(folder, template):
    """Writes chat_template.jinja, as Transformers reads it, and what else a ChatTemplate is."""
    folder = pathlib.Path(folder)
    write_atomic(folder / _FILE, template.source)
    about = {'name': template.name, 'derived': template.derived}
    write_atomic(folder / _ABOUT, json.dumps(about) + '\n')


def read_template(folder):
    """The ChatTemplate that was saved in a folder, or None."""
    folder = pathlib.Path(folder)
    if not (folder / _FILE).exists():
        return None
    about = {'name': str(folder / _FILE), 'derived': True}
    if (folder / _ABOUT).exists():
        about = json.loads((folder / _ABOUT).read_text(encoding='utf-8'))
    return ChatTemplate(source=(folder / _FILE).read_text(encoding='utf-8'), **about)


def plain_source(template):
    """The template without generation marks, for tools that do not know them.

    A condition that always holds stands for each, so that Jinja treats the white space around it
    in the same way.
    """
    plain = lambda found: f'{found[1]}{"endif" if found[2] else "if true"}{found[3]}'
    return _MARKS.sub(plain, template.source)


def check_messages(messages):
    """Raises InputError for messages that are none, or have an unknown role or no text."""
    if not messages:
        raise InputError('a conversation without messages; expected at least one')
    for number, message in enumerate(messages, 1):
        if message['role'] not in ROLES:
            raise InputError(f'message {number} has the unknown role {message["role"]!r}; expected '
                             f'one of {", ".join(ROLES)}')


def text(template, messages, tokenizer, *, add_generation_prompt=False, tools=None):
    """The rendered text, for people to look at; `render` is what goes to a model."""
    return ''.join(piece.text for piece in _pieces(template, messages, tokenizer,
                                                   add_generation_prompt, tools))


def check_marked(template):
    """Raises InputError unless a template says which tokens to learn."""
    if not (template.marked or template.derived):
        raise InputError(f'chat template {template.name} has no generation marks, so that nothing '
                         'says which tokens to learn; put {% generation %} and '
                         '{% endgeneration %} around what the assistant says and its end token')


def render(template, messages, tokenizer, *, add_generation_prompt=False, train=True, tools=None):
    """Token ids, loss weights and roles of a conversation.

    Args:
      messages: [{'role': of ROLES, 'content': text, ...}].
      add_generation_prompt: end where the assistant's next turn begins.
      train: the weights matter, so that the template has to say what is learned.
      tools: JSON schemas of functions, for templates that know them.

    Raises:
      InputError: the template takes no such conversation, or has no generation marks.
    """
    if train:
        check_marked(template)
    pieces = _pieces(template, messages, tokenizer, add_generation_prompt, tools)
    ids, encoded = [], []
    for piece in pieces:
        encode = tokenizer.encode_with_special if piece.role == TEMPLATE else tokenizer.encode_piece
        encoded.append(encode(piece.text, ids[-1] if ids else None))
        ids += encoded[-1]
    if template.marked:
        weights = [[float(piece.learned)] * len(new)
                   for piece, new in zip(pieces, encoded, strict=True)]
    else:
        weights = _derived(pieces, encoded, tokenizer)
    roles = [[piece.role] * len(new) for piece, new in zip(pieces, encoded, strict=True)]
    flat = itertools.chain.from_iterable
    return Rendered(ids, list(flat(weights)), list(flat(roles)))


def _derived(pieces, encoded, tokenizer):
    """Loss weights of each piece's tokens where a template has no marks."""
    specials = set(tokenizer.special.values())
    weights = [[0.0] * len(new) for new in encoded]
    behind = None  # pieces of the template since the assistant's last text, if its turn is open
    for i, (piece, new) in enumerate(zip(pieces, encoded, strict=True)):
        end = 0
        if piece.role == 'assistant':
            end = len(new)
        elif piece.role == TEMPLATE and behind is not None:
            end = next((place for place, token in enumerate(new, 1) if token in specials), 0)
        if end:
            for j in behind or ():
                weights[j] = [1.0] * len(weights[j])
            weights[i][:end] = [1.0] * end
        if piece.role == 'assistant':
            behind = []
        elif piece.role != TEMPLATE or end:
            behind = None
        elif behind is not None:
            behind.append(i)
    return weights


@dataclasses.dataclass(frozen=True)
class _Piece:
    text: str
    role: str
    learned: bool


def _pieces(template, messages, tokenizer, add_generation_prompt, tools):
    """The rendered text as _Pieces."""
    check_messages(messages)
    marks = marking.Marks.unused(messages, tools, template.source)
    try:
        rendered = template.compiled.render(
            messages=[marks.message(message, tokenizer) for message in messages],
            add_generation_prompt=add_generation_prompt, bos_token=tokenizer.bos,
            eos_token=tokenizer.eos, tools=marks.spelt(tools, tokenizer),
            _begin_generation=marks.begin, _end_generation=marks.end)
    except (_Refused, jinja2.TemplateError, TypeError, KeyError) as error:
        raise InputError(f'chat template {template.name} does not take this conversation: {error}; '
                         'change its roles or their order, or use another template') from error
    by_open = {mark: role for role, mark in marks.opens.items()}
    pieces, role, learned = [], TEMPLATE, False
    for part in re.split(f'([{marks.begin}{marks.end}{marks.close}{"".join(by_open)}])', rendered):
        if part in (marks.begin, marks.end):
            learned = part == marks.begin
        elif part == marks.close or part in by_open:
            if (part == marks.close) == (role == TEMPLATE):
                raise _apart(template)
            role = TEMPLATE if part == marks.close else by_open[part]
        elif role != TEMPLATE and part:
            pieces.append(_Piece(part.replace(marks.joint, ''), role, learned))
        elif part:
            pieces += [_Piece(own, TEMPLATE, learned) for own in part.split(marks.joint) if own]
    if role != TEMPLATE:
        raise _apart(template)
    return _with_spaces(pieces)


def _with_spaces(pieces):
    """Moves one space from the end of the template's text to the text behind it."""
    moved = []
    for piece in pieces:
        before = moved[-1] if moved else None
        # Without marks, a prompt may end before the assistant's text, with the space.
        if (before and piece.role != TEMPLATE and before.role == TEMPLATE
                and before.text.endswith(' ') and before.learned == piece.learned
                and (piece.learned or piece.role != 'assistant')):
            moved[-1] = dataclasses.replace(before, text=before.text[:-1])
            piece = dataclasses.replace(piece, text=f' {piece.text}')
        moved.append(piece)
    return [piece for piece in moved if piece.text]


def _apart(template):
    return InputError(f'chat template {template.name} takes the text of messages apart, so that it '
                      'is unknown which part a person wrote; use a template that leaves it whole')


def stop_ids(template, tokenizer):
    """Ids that end an answer: the first special token behind one, and the end of text.

    Raises:
      InputError: the template puts no special token of this tokenizer there.
    """
    messages = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
    rendered = render(template, messages, tokenizer, train=False)
    last = max(i for i, role in enumerate(rendered.roles) if role == 'assistant')
    specials = set(tokenizer.special.values())
    ending = [token for token in rendered.ids[last + 1:] if token in specials][:1]
    if not ending:
        raise InputError(f'chat template {template.name} ends answers with '
                         f'{tokenizer.decode(rendered.ids[last + 1:], skip_special=False)!r}, '
                         f'which is no special token of tokenizer {tokenizer.name}, so that a '
                         'model could not learn to stop; use a template made for it')
    return tuple(dict.fromkeys([*ending, tokenizer.eos_id]))
