"""Step 1 of fine-tuning on your own data: read, check, split, and say what was found."""

import collections
import dataclasses
import hashlib
import json
import pathlib

from jaxllm.config import write_atomic
from jaxllm.data import dialogues
from jaxllm.data.conversations import Conversation
from jaxllm.data.prepare import checks, personal, similar
from jaxllm.data.prepare.findings import ERROR, WARNING, Finding, PrepareConfig, lines, places
from jaxllm.data.rejects import Rejects
from jaxllm.errors import InputError

LEAST = 4  # records: fewer cannot be split into something to learn and something to ask
FEW = 20


@dataclasses.dataclass(frozen=True)
class Prepared:
    """train, held_out: Conversations. dropped: [(origin, reason)]. counts: numbers by name."""
    train: tuple
    held_out: tuple
    dropped: tuple
    findings: tuple
    counts: dict


def prepare(path, config=None, *, held_out_path='', count_tokens=None, context=0):
    """Reads and checks a file of conversations or pairs, and holds some out.

    Dropped are records that cannot be read, exact repetitions, training records that ask what a
    held-out one asks, and what the checks in `config.drop` find; all else is only told.

    Args:
      path: .jsonl, .jsonl.gz, .csv or .parquet, see data/conversations.py.
      config: PrepareConfig; default: its defaults.
      held_out_path: a file of records to hold out, in place of a share of `path`.
      count_tokens: count_tokens(Conversation) -> tokens; context: more of them are cut.

    Raises:
      InputError: no such file, nothing readable in it, or too few records.
    """
    config = config or PrepareConfig()
    records, dropped, findings = _read(path)
    read = len(records) + len(dropped)
    findings += checks.exact_duplicates(records, config)
    records = _without(records, findings, dropped, 'duplicate')
    findings += checks.lengths(records, config, count_tokens, context)
    for check in checks.CHECKS:
        findings += check(records, config)
    for kind in config.drop:
        records = _without(records, findings, dropped, kind)
    if config.mask_pii:
        records = [_masked(record) for record in records]
    if held_out_path:
        held_out, lost, more = _read(held_out_path)
        dropped += lost
        findings += more
        train = records
    else:
        train, held_out = _split(records, config)
    if len(train) < 2 or not held_out:
        raise InputError(f'{path} has {len(records)} usable records of {read}, of which '
                         f'{len(train)} would be left to learn from; expected at least {LEAST} '
                         'different ones')
    leaks = checks.leakage(train, held_out, config)
    train = _without(train, leaks, dropped, 'leakage')
    findings += leaks
    if len(train) < 2:
        raise InputError(f'{path}: all but {len(train)} training records ask what a held-out one '
                         'asks; give other held-out records')
    if len(records) < FEW:
        findings.append(Finding('few', WARNING, f'{len(records)} usable records are very few: '
                                'expect a change of style at most, and wide intervals'))
    order = {ERROR: 0, WARNING: 1}
    findings.sort(key=lambda finding: order.get(finding.severity, 2))
    counts = {'read': read, 'usable': len(records), 'train': len(train),
              'held_out': len(held_out), 'dropped': len(dropped),
              'preferences': sum(bool(x.rejected) for x in (*train, *held_out))}
    return Prepared(tuple(train), tuple(held_out), tuple(dropped), tuple(findings), counts)


def _read(path):
    """(Conversations, [(origin, reason)] of what is none, Findings about that)."""
    spec, rejects = dialogues.DialogueSpec('data', str(path)), _Kept()
    if pathlib.Path(path).is_file() and not pathlib.Path(path).stat().st_size:
        raise InputError(f'{path} is empty; expected one record per line')
    records = list(dialogues.read_conversations(spec, rejects))
    reasons = collections.defaultdict(list)
    for origin, reason in rejects.all:
        reasons[reason].append(origin)
    findings = [Finding('unreadable', ERROR, f'cannot be used, {lines(tuple(origins))}: {reason}',
                        tuple(origins)) for reason, origins in reasons.items()]
    if len(records) + len(rejects.all) < LEAST:
        raise InputError(f'{path} has {len(records) + len(rejects.all)} record(s); expected at '
                         f'least {LEAST}, some to learn from and some to ask afterwards')
    return records, list(rejects.all), findings


class _Kept(Rejects):
    """Rejects that remembers each one."""

    def __init__(self):
        super().__init__()
        self.all = []

    def reject(self, source, origin, reason, start=''):
        super().reject(source, origin, reason, start)
        self.all.append((origin, reason))


def _without(records, findings, dropped, kind):
    """Records without those of the findings of a kind; these are added to `dropped`."""
    origins = {origin for finding in findings if finding.kind == kind for origin in finding.origins}
    dropped += [(record.origin, kind) for record in records if record.origin in origins]
    return [record for record in records if record.origin not in origins]


def _masked(record):
    return Conversation(record.id, record.origin,
                        tuple(m | {'content': personal.mask(m['content'])}
                              for m in record.messages),
                        tuple(map(personal.mask, record.rejected)))


def _split(records, config):
    """(train, held out): records with nearly the same prompt stay together, by a hash of it."""
    pairs = similar.near_pairs([x.request for x in records], config.near_duplicate)
    roots = similar.groups(len(records), pairs)
    members = collections.defaultdict(list)
    for i, root in enumerate(roots):
        members[root].append(i)
    wanted = max(round(config.holdout_share * len(records)),
                 min(config.min_holdout, len(records) // 3), 1)
    wanted = min(wanted, config.max_holdout)
    key = lambda root: min(hashlib.blake2b(similar.normal(records[i].request).encode(),
                                           digest_size=8).digest() for i in members[root])
    held = set()
    for root in sorted(members, key=key):
        if len(held) + len(members[root]) <= wanted or not held:
            held.update(members[root])
        if len(held) >= wanted:
            break
    return ([x for i, x in enumerate(records) if i not in held],
            [x for i, x in enumerate(records) if i in held])


def write(folder, prepared):
    """Writes train.jsonl, held_out.jsonl, dropped.jsonl and prepare.json into `folder`."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ('train', 'held_out'):
        write_atomic(folder / f'{name}.jsonl', ''.join(
            json.dumps(_fields(record), ensure_ascii=False) + '\n'
            for record in getattr(prepared, name)))
    write_atomic(folder / 'dropped.jsonl', ''.join(
        json.dumps({'origin': origin, 'reason': reason}, ensure_ascii=False) + '\n'
        for origin, reason in prepared.dropped))
    write_atomic(folder / 'prepare.json', json.dumps({
        'counts': prepared.counts,
        'findings': [dataclasses.asdict(finding) for finding in prepared.findings]},
        indent=1, ensure_ascii=False) + '\n')


def _fields(record):
    fields = {'id': record.id, 'origin': record.origin}
    if not record.rejected:
        return fields | {'messages': list(record.messages)}
    prompt, chosen = list(record.prompt), record.messages[-1]
    return fields | {'prompt': prompt, 'chosen': chosen['content'],
                     'rejected': list(record.rejected)}


def text(prepared):
    """What was found, for a terminal."""
    counts = prepared.counts
    head = (f'{counts["read"]} records read, {counts["dropped"]} dropped, {counts["train"]} to '
            f'learn from, {counts["held_out"]} held out')
    return '\n'.join([head, *(f'  {finding.severity:<8}{finding.text}'
                              for finding in prepared.findings)])


__all__ = ['Prepared', 'places', 'prepare', 'text', 'write']
