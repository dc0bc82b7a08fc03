"""Conversations as token ids and loss weights, by a Jinja template, in one place for every stage.

What a person wrote is marked before the template sees it, by characters of a private-use plane that
occur nowhere in the conversation. So the rendered text falls into pieces: a user's text is encoded
as ordinary text, in which a typed `<|im_end|>` is just letters; the template's own text may hold
special tokens. Tokens never reach over the edge of a piece, and the loss weight of every token is
known from where it came, not searched for afterwards.

A template marks what the model is to learn with {% generation %} ... {% endgeneration %}. Of a
template that came with a model and has no marks, the answers of the assistant are learned, each
with what the template puts behind it up to the first special token.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from jaxllm.config import write_atomic
from jaxllm.errors import InputError

ROLES = ('system', 'user', 'assistant', 'tool')
TEMPLATE = 'template'  # the role of the template's own text
_FOLDER = pathlib.Path(__file__).parent / 'templates'
_FILE, _ABOUT = 'chat_template.jinja', 'chat_template.json'
_PLAIN_KEYS = ('role', 'type')  # of messages: not a person's text
_MARKS = re.compile(r'\{%-?\s*(?:end)?generation\s*-?%\}')
_FIRST_MARK, _LAST_MARK = 0xF0000, 0xFFFFD


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
        environment.filters['tojson'] = _to_json
        environment.globals['raise_exception'] = _refuse
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


def _to_json(value, indent=None):
    """As Transformers does: neither HTML nor non-ASCII letters are escaped."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


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
    """The template without generation marks, for tools that do not know them."""
    return _MARKS.sub('', template.source)


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
    ids, weights, roles = [], [], []
    open_answer = False  # behind an assistant's text whose end token has not come yet
    for piece in pieces:
        if piece.role != TEMPLATE:
            new = tokenizer.encode_piece(piece.text)
            open_answer = piece.role == 'assistant'
        else:
            new = tokenizer.encode_with_special(piece.text)
        learned = [float(piece.learned)] * len(new)
        if not template.marked and (piece.role == 'assistant' or open_answer):
            learned, open_answer = _derived(piece, new, tokenizer)
        ids += new
        weights += learned
        roles += [piece.role] * len(new)
    return Rendered(ids, weights, roles)


def _derived(piece, ids, tokenizer):
    """(weights, whether the answer goes on behind this piece) where a template has no marks."""
    if piece.role == 'assistant':
        return [1.0] * len(ids), True
    specials = set(tokenizer.special.values())
    end = next((i for i, token in enumerate(ids) if token in specials), None)
    if end is None:
        return [0.0] * len(ids), False
    return [1.0] * (end + 1) + [0.0] * (len(ids) - end - 1), False


@dataclasses.dataclass(frozen=True)
class _Piece:
    text: str
    role: str
    learned: bool


def _pieces(template, messages, tokenizer, add_generation_prompt, tools):
    """The rendered text as _Pieces."""
    check_messages(messages)
    marks = _unused_marks(messages, template)
    begin, end, *opens, close = marks
    opens = dict(zip(ROLES, opens, strict=True))
    try:
        rendered = template.compiled.render(
            messages=[_mark(dict(m), opens[m['role']], close) for m in messages],
            add_generation_prompt=add_generation_prompt, bos_token=tokenizer.bos,
            eos_token=tokenizer.eos, tools=tools, _begin_generation=begin, _end_generation=end)
    except (_Refused, jinja2.TemplateError, TypeError, KeyError) as error:
        raise InputError(f'chat template {template.name} does not take this conversation: {error}; '
                         'change its roles or their order, or use another template') from error
    by_open = {mark: role for role, mark in opens.items()}
    pieces, role, learned = [], TEMPLATE, False
    for part in re.split(f'([{"".join(marks)}])', rendered):
        if part in (begin, end):
            learned = part == begin
        elif part == close or part in by_open:
            if (part == close) == (role == TEMPLATE):
                raise _apart(template)
            role = TEMPLATE if part == close else by_open[part]
        elif part:
            pieces.append(_Piece(part, role, learned))
    if role != TEMPLATE:
        raise _apart(template)
    return pieces


def _apart(template):
    return InputError(f'chat template {template.name} takes the text of messages apart, so that it '
                      'is unknown which part a person wrote; use a template that leaves it whole')


def _unused_marks(messages, template):
    """As many private-use characters as there are kinds of marks, none of which occurs."""
    used = set(json.dumps(messages, ensure_ascii=False, default=str)) | set(template.source)
    marks, code = [], _FIRST_MARK
    while len(marks) < len(ROLES) + 3:
        if code > _LAST_MARK:
            raise InputError('a conversation uses up the private-use characters of Unicode')
        if chr(code) not in used:
            marks.append(chr(code))
        code += 1
    return marks


def _mark(value, opening, closing, key=''):
    """Marks every text in a message but its role. White space at its ends stays outside, so that
    templates can trim it: it is no special token."""
    if isinstance(value, dict):
        return {name: _mark(item, opening, closing, name) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mark(item, opening, closing) for item in value]
    if not isinstance(value, str) or key in _PLAIN_KEYS or not value.strip():
        return value
    core = value.strip()
    start = value.index(core)
    return f'{value[:start]}{opening}{core}{closing}{value[start + len(core):]}'


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
