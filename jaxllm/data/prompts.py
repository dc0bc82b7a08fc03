"""Prompts to answer: read from any file of conversations or comparisons, rendered, counted."""

import dataclasses
from typing import Any

from jaxllm.data import chat, dialogues
from jaxllm.data.conversations import Unreadable
from jaxllm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is asked.

    messages: of {'role', 'content'}, the last one the user's. ids: rendered, up to where the
    assistant begins. fields: the whole record, for rewards that need more than the text.
    """
    id: str
    messages: tuple
    ids: tuple
    fields: Any = dataclasses.field(default_factory=dict, hash=False)

    @property
    def text(self):
        """The user's last words."""
        return self.messages[-1]['content']


def messages_of(fields):
    """The prompt of a record: `prompt` (text or messages), or `messages` without the last answer.

    Raises:
      Unreadable: neither, or nothing is asked.
    """
    value = fields.get('prompt', fields.get('messages', fields.get('instruction')))
    if isinstance(value, str):
        value = [{'role': 'user', 'content': value}]
    if not isinstance(value, list) or not all(
            isinstance(x, dict) and isinstance(x.get('content'), str) and 'role' in x
            for x in value):
        raise Unreadable('no prompt: expected a field `prompt` (a text or messages) or `messages`; '
                         f'got the fields {sorted(fields)}')
    messages = [{'role': x['role'], 'content': x['content']} for x in value]
    while messages and messages[-1]['role'] == 'assistant':
        messages.pop()
    if not messages or messages[-1]['role'] != 'user' or not messages[-1]['content'].strip():
        raise Unreadable('nothing is asked: the last message before the answer must be a '
                         "user's and not empty")
    return tuple(messages)


def read_prompts(spec, template, tokenizer, max_tokens, rejects):
    """The different prompts of a source, in its order.

    Args:
      spec: a DialogueSpec. max_tokens: of a rendered prompt; longer ones are rejected, not cut.

    Returns:
      (prompts, how many records asked what another one had asked).

    Raises:
      InputError: not one prompt that can be used.
    """
    def prompt(raw):
        messages = messages_of(raw.fields)
        try:
            ids = chat.render(template, list(messages), tokenizer, add_generation_prompt=True,
                              train=False).ids
        except InputError as error:
            raise Unreadable(f'not for this template: {error}') from error
        if len(ids) > max_tokens:
            raise Unreadable(f'prompt too long: {len(ids)} tokens, and '
                             f'data.max_prompt_tokens={max_tokens}')
        return Prompt(dialogues.record_id(raw), messages, tuple(ids), raw.fields)

    found, repeated = {}, 0
    for one in dialogues.read_source(spec, rejects, prompt, 'prompt'):
        repeated += one.ids in found
        found.setdefault(one.ids, one)
    return list(found.values()), repeated
