"""From the data section of a fine-tuning config to token stores of conversations, and prompts."""

import collections
import dataclasses
import json

from jaxllm import decode
from jaxllm.config import one_builder, section, write_atomic
from jaxllm.data import chat, dialogues
from jaxllm.data.dialogues import DialogueSpec
from jaxllm.data.records import Rejects
from jaxllm.data.store import TokenStore, write_store
from jaxllm.errors import InputError
from jaxllm.stages import corpus
from jaxllm.train.progress import stage as say


@dataclasses.dataclass(frozen=True)
class DataConfig:
    conversations: object    # {name: DialogueSpec}
    replay: object           # {name: records.SourceSpec}: text beside them, as in pre-training
    seq_len: int             # tokens per row; longer conversations are cut
    holdout_share: float     # of the conversations of each source, for validation
    max_reject_share: float  # more malformed records than this stop the run

    def __post_init__(self):
        corpus.check_shares(self, 'conversations')


def sources(config):
    """(DialogueSpecs, SourceSpecs of replay) of `config.data`."""
    data = config.data
    if not data.conversations and not data.replay:
        raise InputError('config.data.conversations is empty; add a source with a path')
    both = {**data.conversations, **data.replay}
    if len(both) < len(data.conversations) + len(data.replay):
        raise InputError('a source of config.data.conversations and one of config.data.replay have '
                         'the same name; give each its own')
    world = corpus.check_world(both, config)
    return [section(DialogueSpec, {**spec.to_dict(), **corpus.own(name, spec, world)},
                    f'data.conversations.{name}') for name, spec in data.conversations.items()], [
        section(corpus.SourceSpec, {**spec, **corpus.own(name, spec, world)},
                f'data.replay.{name}') for name, spec in data.replay.items()]


def weights(config):
    """{source: weight in the mixture}, conversations and replay."""
    specs, replay = sources(config)
    return {spec.name: spec.weight for spec in (*specs, *replay)}


def template_of(name, base, tokenizer):
    """The ChatTemplate to learn: the named one, the base's own, or for a base without ChatML if its
    tokenizer has the tokens for it, else `plain`, whose answers end with the end of text.

    Raises:
      InputError: it does not say what to learn, or does not fit the tokenizer.
    """
    template = chat.load_template(name) if name else base.template()
    if template is None:
        has_chat_tokens = {'<|im_start|>', '<|im_end|>'} <= tokenizer.special.keys()
        template = chat.load_template('chatml_bos' if has_chat_tokens else 'plain')
    chat.check_marked(template)
    chat.stop_ids(template, tokenizer)
    return template


def make_stores(config, setup, folder):
    """({name: TokenStore} of conversations, the same of replay) in `folder`, built where missing.

    Malformed records go to rejects-<source>.jsonl; more than `data.max_reject_share` of a source
    is an InputError.
    """
    specs, replay = sources(config)
    with one_builder(folder):
        stores = {spec.name: _store(config, spec, setup, folder) for spec in specs}
    return stores, corpus.make_stores(config.data, replay, setup.tokenizer, folder)


def _store(config, spec, setup, folder):
    if not spec.validation_split:
        return _built(config, spec, setup, folder, config.data.holdout_share)
    held_out = dataclasses.replace(spec, name=f'{spec.name}.validation', validation_split='',
                                   split=spec.validation_split)
    train, validation = (_built(config, part, setup, folder, 0.0) for part in (spec, held_out))
    return dataclasses.replace(train, validation=validation.train)


def _built(config, spec, setup, folder, holdout_share):
    target = folder / 'stores' / spec.name
    if not target.exists():
        say(f'rendering {spec.name} ...')
        rejects, counts = Rejects(folder / f'rejects-{spec.name}.jsonl'), collections.Counter(cut=0)
        found = dialogues.render_all(dialogues.read_conversations(spec, rejects), spec,
                                     setup.template, setup.tokenizer, config.data.seq_len, rejects,
                                     counts)
        write_store(_checked(spec, found, rejects, counts, config, folder), setup.tokenizer, target,
                    holdout_share=holdout_share, encode=dialogues.encode,
                    source_fingerprint=f'{spec.fingerprint}/{setup.template.fingerprint}/'
                                       f'{config.data.seq_len}')
    store = TokenStore.open(target)
    if store.train.tokenizer_fingerprint != setup.tokenizer.fingerprint:
        raise InputError(f'{target} was built with another tokenizer; delete {folder / "stores"} '
                         'to build it again')
    return store


def _checked(spec, found, rejects, counts, config, folder):
    yield from found
    rejects.check(config.data.max_reject_share)
    write_atomic(folder / f'rejects-{spec.name}.json', json.dumps(
        rejects.summary()[spec.name] | counts))


def summary(config, stores, source, folder):
    """One row per source for the report: what there is, its share, how often it is read."""
    specs, replay = sources(config)
    epochs, rows = source.epochs(config.train.num_steps), []
    for spec in (*specs, *replay):
        store = stores[spec.name]
        both = store.train, store.validation
        rejects = json.loads((folder / f'rejects-{spec.name}.json').read_text())
        learned = [split.num_tokens if split.weights is None else int(split.weights.sum())
                   for split in both]
        rows.append({
            'source': spec.name, 'path': spec.path, 'license': spec.license,
            'documents': sum(split.num_documents for split in both),
            'held out': both[1].num_documents, 'tokens': sum(split.num_tokens for split in both),
            'learned tokens': sum(learned), 'bytes': int(sum(s.text_bytes.sum() for s in both)),
            'share': source.shares[spec.name], 'epochs': epochs[spec.name], 'rejects': rejects})
    return rows


def request(setup, prompt):
    """Token ids of a user's message, up to where the answer begins."""
    return chat.render(setup.template, [{'role': 'user', 'content': prompt}], setup.tokenizer,
                       add_generation_prompt=True).ids


def _held_out(spec, split):
    """Conversations of a source that a StoreSplit holds."""
    with open(split.folder / f'{split.name}.documents.jsonl', encoding='utf-8') as lines:
        origins = {json.loads(line)['origin'] for line in lines}
    part = dataclasses.replace(spec, split=spec.validation_split or spec.split, validation_split='')
    return (x for x in dialogues.read_conversations(part, Rejects()) if x.origin in origins)


def stop_check(setup, params, stores, config):
    """Whether greedy answers to held-out prompts end by themselves, as JSON.

    An answer that does not is as long as 1.5 times the longest answer among them, and 32 tokens.
    """
    specs, _ = sources(config)
    asked, longest = [], 0
    for spec in specs:
        for conversation in _held_out(spec, stores[spec.name].validation):
            if len(asked) == config.chat.stop_prompts:
                break
            prompt = chat.render(setup.template, conversation.prompt, setup.tokenizer,
                                 add_generation_prompt=True).ids
            answer = len(setup.tokenizer.encode(conversation.answer))
            if len(prompt) + answer <= config.data.seq_len:
                asked.append(prompt)
                longest = max(longest, answer)
    if not asked:
        return {'asked': 0, 'stopped': 0, 'share': None, 'text': 'no prompt to see whether answers '
                'stop: all are longer than data.seq_len'}
    room = longest + longest // 2 + 32
    if setup.model.positions == 'learned':
        room = min(room, setup.model.max_seq_len - max(map(len, asked)))
    out = decode.generate(params, setup.model, asked,
                          decode.SamplingConfig(max_new_tokens=room, temperature=0.0),
                          stop_ids=chat.stop_ids(setup.template, setup.tokenizer),
                          pad_id=setup.tokenizer.pad_id, batch_size=32)
    stopped = sum(finish == 'stop' for finish in out.finish)
    text = f'{stopped} of {len(asked)} greedy answers end by themselves within {room} tokens'
    if stopped < 0.9 * len(asked):
        text += ('; the model has not learned to stop: train longer, or look whether the answers '
                 'were cut (data.seq_len)')
    return {'asked': len(asked), 'stopped': stopped, 'share': stopped / len(asked), 'text': text}
