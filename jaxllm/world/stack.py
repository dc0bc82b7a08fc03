"""A small stack language: its interpreter and a generator of programs that run without an error.

A program is words divided by spaces; numbers are pushed and stay below 100 (arithmetic modulo 100):
  add sub mul   replace the two topmost numbers a b by a + b, a - b, a * b
  dup drop      repeat, or throw away, the topmost number
  swap over     a b -> b a, and a b -> a b a
  times [ ... ] take a number n off the stack and run the words in brackets n times
Its output is the final stack, bottom first: `2 3 add dup` gives `5 5`.
"""

from jaxllm.errors import InputError

MODULUS = 100
MAX_STEPS = 10_000
ARITHMETIC = {'add': lambda a, b: a + b, 'sub': lambda a, b: a - b, 'mul': lambda a, b: a * b}
# word: (numbers it needs, numbers it leaves in their place)
EFFECTS = {'add': (2, 1), 'sub': (2, 1), 'mul': (2, 1), 'dup': (1, 2), 'drop': (1, 0),
           'swap': (2, 2), 'over': (2, 3)}
# Bodies of loops that need and leave the same number of numbers, so any count of turns is legal.
BODIES = ('dup add', '{n} add', '{n} mul', '{n} sub', 'dup mul', 'swap', 'over add',
          'swap over add')


def run(program):
    """The final stack of a program, bottom first.

    Args: program: str, words divided by white space.
    Returns: list[int], each in [0, 100).
    Raises: InputError: an unknown word, too few numbers, brackets that do not match, over 10,000
        steps.
    """
    words = program.split()
    stack = []
    _run(words, _brackets(words, program), 0, len(words), stack, [0], program)
    return stack


def output(program):
    """What a program prints: '5 5', or 'empty'."""
    return ' '.join(map(str, run(program))) or 'empty'


def _brackets(words, program):
    """{index of '[': index of its ']'}."""
    ends, open_at = {}, []
    for index, word in enumerate(words):
        if word == '[':
            if not index or words[index - 1] != 'times':
                raise InputError(f'program {program!r}: a [ without times; expected `times [`')
            open_at.append(index)
        elif word == ']':
            if not open_at:
                raise InputError(f'program {program!r}: a ] has no [; add `times [` before it')
            ends[open_at.pop()] = index
    if open_at:
        raise InputError(f'program {program!r}: a [ is never closed; add ]')
    return ends


def _take(stack, count, word, program):
    if len(stack) < count:
        raise InputError(f'program {program!r}: {word} found {len(stack)} numbers on the stack, '
                         f'expected {count} or more; push them first')
    taken = stack[len(stack) - count:]
    del stack[len(stack) - count:]
    return taken


def _run(words, ends, start, stop, stack, steps, program):
    at = start
    while at < stop:
        steps[0] += 1
        if steps[0] > MAX_STEPS:
            raise InputError(f'program {program!r}: over {MAX_STEPS} steps; use fewer turns')
        word = words[at]
        if word.isascii() and word.isdigit():
            stack.append(int(word) % MODULUS)
        elif word in ARITHMETIC:
            stack.append(ARITHMETIC[word](*_take(stack, 2, word, program)) % MODULUS)
        elif word in EFFECTS:
            taken = _take(stack, EFFECTS[word][0], word, program)
            stack.extend({'dup': taken * 2, 'drop': [], 'swap': taken[::-1],
                          'over': taken + taken[:1]}[word])
        elif word == 'times':
            if at + 1 not in ends:
                raise InputError(f'program {program!r}: times has no [ after it; '
                                 f'expected `times [ ... ]`')
            turns, = _take(stack, 1, word, program)
            for _ in range(turns):
                _run(words, ends, at + 2, ends[at + 1], stack, steps, program)
                steps[0] += 1
                if steps[0] > MAX_STEPS:
                    raise InputError(f'program {program!r}: over {MAX_STEPS} steps; '
                                     f'use fewer turns')
            at = ends[at + 1]
        else:
            raise InputError(f'program {program!r}: unknown word {word!r}; expected a number, '
                             f'{", ".join(EFFECTS)}, times, [ or ]')
        at += 1


def random_program(rng, level):
    """A program that leaves 1 to 3 numbers.

    Level 1: two numbers and one word. Level 2: words that also copy and swap. Level 3: with a loop.
    """
    if level == 1:
        return f'{rng.integers(MODULUS)} {rng.integers(MODULUS)} {rng.choice(list(ARITHMETIC))}'
    words = [str(rng.integers(20)) for _ in range(2)]
    depth = 2
    for _ in range(rng.integers(2, 5)):
        legal = [word for word, (needs, leaves) in EFFECTS.items()
                 if needs <= depth and 1 <= depth - needs + leaves <= 3]
        word = rng.choice(legal + ['number'] * (depth < 3) * 2)
        words.append(str(rng.integers(20)) if word == 'number' else str(word))
        depth += 1 if word == 'number' else EFFECTS[word][1] - EFFECTS[word][0]
    if level == 3:
        if depth < 2:
            words.append('dup')
            depth += 1
        body = str(rng.choice(BODIES)).format(n=rng.integers(2, 10))
        words += [str(rng.integers(2, 5)), 'times', '[', *body.split(), ']']
        words += ['add'] * int(rng.integers(2))
    return ' '.join(words)
