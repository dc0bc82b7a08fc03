"""Labels in a terminal, with the store of the web page."""

import re
import sys
import time
import uuid

from jaxllm.errors import InputError

_HELP = """A ranking names the best first: `b a c`; `=` for a tie: `b = a c`. The letters are in the
order shown; what is left out is tied behind the rest. Or give ranks by number: `2 1 3`.
  bad           none is acceptable (may stand before a ranking: `bad b a`)
  # TEXT        a comment on this item, kept with the next ranking
  skip, back    the next item, the one before
  undo          take back what you said of this item
  quit          leave; everything is stored"""


def parse(text, count):
    """(ranks in the order shown, all_bad) of what a rater typed for `count` responses.

    'b a c' -> [2, 1, 3]; 'b=a c' -> [1, 1, 2]; '2 1 3' -> [2, 1, 3]; 'bad' -> ([], True).

    Raises:
        InputError: it names something else, or something twice.
    """
    words = re.sub(r'([=>,])', r' \1 ', text.lower()).replace(',', ' ').replace('>', ' ').split()
    all_bad = words[:1] == ['bad']
    words = words[all_bad:]
    if not words and all_bad:
        return [], True
    letters = [chr(97 + i) for i in range(count)]
    if words and all(word.isdecimal() for word in words):
        ranks = list(map(int, words))
        if len(ranks) != count or not all(1 <= rank <= count for rank in ranks):
            raise InputError(f'{text!r}: expected {count} numbers from 1 to {count}')
        return ranks, all_bad
    ranks, rank, tied = {}, 0, True
    for i, word in enumerate(words):
        if word == '=' and ranks and not tied and i + 1 < len(words):
            tied = True
            continue
        if word not in letters or word in ranks:
            raise InputError(f'{text!r}: expected each of {" ".join(letters)} at most once, best '
                             'first, with = between ties; `help` for more')
        rank += 0 if tied and ranks else 1
        ranks[word], tied = rank, False
    if not ranks:
        raise InputError('nothing was ranked; `help` for help')
    return [ranks.get(letter, rank + 1) for letter in letters], all_bad


def run(labels, rater, criterion, *, read, write):
    """Asks for rankings until all items are done or the input ends.

    Args:
        read, write: `input` and `print`, or the like.
    """
    names, comment = list(labels.items), ''
    done = {item for item, other in labels.of_rater(rater) if other == criterion}
    at = next((i for i, name in enumerate(names) if name not in done), 0)
    write(f'{rater} ranks by: {criterion}. {len(done)} of {len(names)} items done.\n{_HELP}')
    shown_at = -1
    while True:
        if shown_at != at:
            began, shown_at = time.monotonic(), at
            write(_shown(labels, rater, names[at], at, criterion))
        try:
            line = read('> ').strip()
        except EOFError:
            break
        if line == 'quit':
            break
        where = dict(key=uuid.uuid4().hex, rater=rater, item=names[at], criterion=criterion)
        if line in ('help', '?', ''):
            write(_HELP)
        elif line.startswith('#'):
            comment = line[1:].strip()
        elif line in ('skip', 'back'):
            at, comment = (at + (1 if line == 'skip' else -1)) % len(names), ''
        elif line == 'undo':
            labels.withdraw(**where)
            write('taken back')
        else:
            try:
                ranks, all_bad = parse(line, len(labels.items[names[at]].responses))
                labels.rate(**where, ranks=ranks, all_bad=all_bad, comment=comment,
                            seconds=time.monotonic() - began)
            except InputError as error:
                write(str(error))
                continue
            comment = ''
            rated = {item for item, other in labels.of_rater(rater) if other == criterion}
            left = [i for i in range(len(names)) if names[i] not in rated]
            if not left:
                write('All items are done. Thank you.')
                break
            at = next((i for i in left if i > at), left[0])
    count = sum(other == criterion for _, other in labels.of_rater(rater))
    write(f'\n{count} of {len(names)} items are stored in {labels.store.path}')


def _shown(labels, rater, name, at, criterion):
    item = labels.items[name]
    lines = ['', f'--- {at + 1} of {len(labels.items)} · which is more {criterion}? ---']
    lines += [f'{message["role"]}: {_visible(message["content"])}' for message in item.prompt]
    for letter, index in zip('abcdefghijklmnopqrstuvwxyz', labels.shown(rater, name), strict=False):
        lines += ['', f'[{letter}] {_visible(item.responses[index]) or "(says nothing)"}']
    if answer := labels.of_rater(rater).get((name, criterion)):
        said = ' '.join(str(answer.ranks[i]) for i in labels.shown(rater, name))
        lines += ['', f'You said: {said}{", all bad" if answer.all_bad else ""}'
                  f'{f" ({answer.comment})" if answer.comment else ""}']
    return '\n'.join(lines)


def _visible(text):
    """Text that cannot steer the terminal or turn the direction of writing."""
    return ''.join(char if char.isprintable() or char == '\n' else ascii(char)[1:-1]
                   for char in text)


def ask_rater(read):
    """The name that a rater types."""
    if not sys.stdin.isatty():
        raise InputError('--terminal needs --rater=NAME where nobody can be asked')
    return read('Your name: ')
