"""Conversations from the formats that people have them in, one normal form out.

    messages         [{"role": "user", "content": "..."}, ...]                    (OpenAI)
    conversations    [{"from": "human", "value": "..."}, ...]                     (ShareGPT)
    instruction      and output or response, with an optional input               (Alpaca)
    prompt           and response, completion or answer; also question, query
    chosen           and rejected: texts with a prompt, whole lists of messages, or dialogues in one
                     text ("Human: ... Assistant: ...", as HH-RLHF)
    responses        and ranks (1 = best), scores or ratings (higher = better), with a prompt: the
                     best is chosen, the others rejected

A system prompt may stand in the field `system`.
"""

import dataclasses
import math
import numbers
import re

from jaxllm.data.chat import ROLES

_TURN = re.compile(r'(?:\A|\n\n)\s*(Human|Assistant):')
_ROLE_NAMES = {'human': 'user', 'user': 'user', 'prompter': 'user', 'gpt': 'assistant',
               'assistant': 'assistant', 'model': 'assistant', 'bot': 'assistant',
               'system': 'system', 'tool': 'tool', 'function': 'tool', 'observation': 'tool'}
PROMPTS = ('prompt', 'instruction', 'question', 'query')
SCORES = ('scores', 'ratings')
ANSWERS = ('response', 'completion', 'output', 'answer')
FORMATS = ('messages', 'ShareGPT', 'chosen/rejected', 'ranked responses', 'Alpaca', 'pairs')


class Unreadable(ValueError):
    """A record is no conversation; says why, the kind of reason before a colon."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """id: of the record. origin: 'file:line'. messages: dicts with role and content, the last one
    the assistant's. rejected: worse answers in its place, of a preference record."""
    id: str
    origin: str
    messages: tuple
    rejected: tuple = ()

    @property
    def prompt(self):
        """The messages before the last one."""
        return self.messages[:-1]

    @property
    def answer(self):
        return self.messages[-1]['content']

    @property
    def request(self):
        """What the last message answers, as text."""
        return self.messages[-2]['content'] if len(self.messages) > 1 else ''


def format_of(fields):
    """Which of FORMATS a record has. Raises Unreadable if none."""
    names = fields.keys()
    if 'chosen' in names and 'rejected' in names:
        return 'chosen/rejected'
    if 'messages' in names:
        return 'messages'
    if 'conversations' in names:
        return 'ShareGPT'
    if 'responses' in names and names & {'ranks', *SCORES}:
        return 'ranked responses'
    if names & set(PROMPTS) and names & set(ANSWERS):
        return 'Alpaca' if 'instruction' in names else 'pairs'
    raise Unreadable(f'unknown format: the fields are {", ".join(sorted(names)) or "none"}; '
                     'expected messages, conversations, a prompt and a response, or a prompt, '
                     'chosen and rejected')


def normalise(fields):
    """(messages, rejected) of a record in any of the formats.

    Raises:
      Unreadable: what is wrong with it, in words.
    """
    kind = format_of(fields)
    if kind == 'messages':
        messages, rejected = as_messages(fields['messages']), ()
    elif kind == 'ShareGPT':
        messages, rejected = as_messages(fields['conversations'], 'from', 'value'), ()
    elif kind == 'chosen/rejected':
        messages, rejected = as_preference(fields)
    elif kind == 'ranked responses':
        messages, rejected = _best_and_worse(fields)
    else:
        messages = [*as_prompt(fields), as_message('assistant', _first(fields, ANSWERS))]
        rejected = ()
    system = fields['system'] if 'system' in fields else ''
    if system and messages[0]['role'] != 'system':
        messages = [as_message('system', system), *messages]
    check(messages)
    return tuple(messages), tuple(rejected)


def _first(fields, names):
    return next(fields[name] for name in names if name in fields)


def as_message(role, content):
    if isinstance(content, (list, tuple)) and content and all(
            isinstance(part, dict) and 'text' in part and isinstance(part['text'], str)
            for part in content):
        content = ''.join(part['text'] for part in content)
    if not isinstance(content, str):
        raise Unreadable(f'no text: what the {role} says is {type(content).__name__}')
    if not content.strip():
        raise Unreadable(f'empty text: the {role} says nothing')
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise Unreadable('lone surrogate: half a character in a text') from error
    return {'role': role, 'content': content}


def as_prompt(fields):
    """The messages of a prompt, which is a text or a list of messages; Alpaca's input behind."""
    prompt = _first(fields, PROMPTS)
    if isinstance(prompt, (list, dict)):
        return as_messages(prompt)
    more = fields['input'] if 'instruction' in fields and 'input' in fields else ''
    if more and not isinstance(more, str):
        raise Unreadable(f'no text: the input is {type(more).__name__}')
    return [as_message('user', f'{prompt}\n\n{more}' if more and more.strip() else prompt)]


def as_messages(items, role_key='role', text_key='content'):
    """A list of messages; TFDS gives a dict of lists."""
    if isinstance(items, dict):
        if role_key not in items or text_key not in items:
            raise Unreadable(f'no messages: expected {role_key} and {text_key} in each')
        columns = list(items.values())
        if not all(isinstance(column, (list, tuple)) for column in columns) or (
                len(set(map(len, columns))) > 1):
            raise Unreadable('no messages: expected a list of them, or lists of equal length for '
                             f'{role_key} and {text_key}')
        items = [dict(zip(items, values, strict=True)) for values in zip(*columns, strict=True)]
    if not isinstance(items, (list, tuple)) or not items:
        raise Unreadable('no messages: expected a list of them that is not empty')
    messages = []
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict) or role_key not in item:
            raise Unreadable(f'no role: message {number} has no field {role_key!r}')
        role = str(item[role_key]).lower()
        if role not in _ROLE_NAMES:
            raise Unreadable(f'unknown role: message {number} is by {item[role_key]!r}; expected '
                             f'one of {", ".join(ROLES)}')
        role = _ROLE_NAMES[role]
        calls = role == 'assistant' and 'tool_calls' in item and item['tool_calls']
        text = item[text_key] if text_key in item else None
        message = ({'role': role, 'content': text or ''} if calls
                   else as_message(role, text))
        kept = {key: value for key, value in item.items()
                if key in ('name', 'tool_calls', 'tool_call_id') and value is not None}
        messages.append(message | kept)
    return messages


def as_preference(fields):
    """(messages with the chosen answer, rejected answers) of a record with chosen and rejected."""
    chosen, rejected = fields['chosen'], fields['rejected']
    if isinstance(chosen, str) and not fields.keys() & set(PROMPTS):
        chosen, rejected = _dialogue(chosen), _dialogue(rejected)
    if isinstance(chosen, str):
        worse = [rejected] if isinstance(rejected, str) else rejected
        if not isinstance(worse, (list, tuple)) or not worse:
            raise Unreadable(f'no rejected answer: rejected is {rejected!r:.40}')
        messages = [*as_prompt(fields), as_message('assistant', chosen)]
        return messages, [as_message('assistant', text)['content'] for text in worse]
    messages, other = as_messages(chosen), as_messages(rejected)
    if not fields.keys().isdisjoint(PROMPTS) and len(messages) == 1:
        prompt = as_prompt(fields)
        messages, other = [*prompt, *messages], [*prompt, *other]
    if messages[:-1] != other[:-1]:
        raise Unreadable('two prompts: chosen and rejected answer different conversations')
    if other[-1]['role'] != 'assistant':
        raise Unreadable(f'no answer: rejected ends with the {other[-1]["role"]}')
    return messages, [other[-1]['content']]


def _dialogue(text):
    """Messages of a dialogue in one text; turns begin with 'Human:' or 'Assistant:'."""
    begin, *parts = _TURN.split(text) if isinstance(text, str) else ['no text']
    if begin.strip() or not parts:
        raise Unreadable('no prompt: chosen and rejected are texts, and nothing says what they '
                         'answer; expected a field prompt, or texts "Human: ... Assistant: ..."')
    return [{'role': name.lower(), 'content': said.strip()}
            for name, said in zip(parts[::2], parts[1::2], strict=True)]


def as_ranking(fields):
    """(messages of the prompt, responses, ranks) of a record with ranks, scores or ratings.

    Ranks are dense from 1, the best; equal numbers are ties.
    """
    name = next(name for name in ('ranks', *SCORES) if name in fields)
    responses, values = fields['responses'], fields[name]
    if not fields.keys() & set(PROMPTS):
        raise Unreadable('no prompt: nothing says what the responses answer')
    if not (isinstance(responses, (list, tuple)) and isinstance(values, (list, tuple)) and all(
            isinstance(x, numbers.Real) and not isinstance(x, bool) for x in values)):
        raise Unreadable(f'ranking: expected a list of responses and a list of numbers as {name}')
    if len(responses) != len(values) or len(responses) < 2:
        raise Unreadable(f'ranking: {len(responses)} responses and {len(values)} {name}; expected '
                         'as many of both, at least two')
    if not all(map(math.isfinite, values)):
        raise Unreadable(f'ranking: {name} {list(values)!r:.60}; expected finite numbers')
    order = sorted(set(values), reverse=name in SCORES)
    texts = [as_message('assistant', text)['content'] for text in responses]
    return as_prompt(fields), texts, [1 + order.index(value) for value in values]


def _best_and_worse(fields):
    prompt, responses, ranks = as_ranking(fields)
    best, *others = sorted(range(len(ranks)), key=lambda i: ranks[i])
    return ([*prompt, as_message('assistant', responses[best])],
            [responses[i] for i in others if ranks[i] > 1])


def check(messages):
    """Raises Unreadable unless the messages are a conversation that can be learned from."""
    roles = [message['role'] for message in messages]
    if 'assistant' not in roles:
        raise Unreadable('no answer: the assistant says nothing')
    if roles[-1] != 'assistant':
        raise Unreadable(f'no answer: the last message is by the {roles[-1]}, expected the '
                         'assistant')
    if 'system' in roles[1:]:
        raise Unreadable('system prompt in the middle: expected it first')
    if 'user' not in roles[:roles.index('assistant')]:
        raise Unreadable('no request: the assistant speaks before any user')
    for number, (one, two) in enumerate(zip(roles, roles[1:], strict=False), 2):
        if one == two != 'tool':
            raise Unreadable(f'two in a row: messages {number - 1} and {number} are both by the '
                             f'{one}; join them')
