"""Three skills with exact answers: sums modulo 97, a stack language and a cipher language.

Every problem has a prompt, an answer, a text for pre-training (prompt + ' ' + answer) and a level.
A problem's split is a hash of its content, so no problem of the test split is ever trained on,
whatever the seed; 3 + 5 and 5 + 3, and the two directions of a translation, share one hash.
"""

import ast
import hashlib

from jaxllm.errors import InputError
from jaxllm.world import cipher, stack
from jaxllm.world.spec import generator

FIELDS = {'id': 'str', 'split': 'str', 'language': 'str', 'level': 'int', 'problem': 'str',
          'direction': 'str', 'prompt': 'str', 'answer': 'str', 'text': 'str'}
LANGUAGES = ('arithmetic', 'stack', 'cipher')
LEVELS = (1, 2, 3)
MODULUS = 97
# At most so many different problems per language and level; one-step sums have only 18,915.
PROBLEMS_PER_LEVEL = {'nano': 1_200, 'small': 20_000, 'tpu': 200_000}
TRIES = 4
OPERATORS = {ast.Add: ('+', lambda a, b: a + b), ast.Sub: ('-', lambda a, b: a - b),
             ast.Mult: ('*', lambda a, b: a * b)}


def arithmetic(problem):
    """A sum's value modulo 97, and its canonical form: operands of + and * sorted.

    Raises: InputError: anything but whole numbers, + - * and brackets.
    """
    def walk(node):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value % MODULUS, str(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            symbol, operate = OPERATORS[type(node.op)]
            (left, left_key), (right, right_key) = walk(node.left), walk(node.right)
            keys = [left_key, right_key] if symbol == '-' else sorted((left_key, right_key))
            return operate(left, right) % MODULUS, f'({keys[0]} {symbol} {keys[1]})'
        raise InputError(f'{problem!r} is not a sum of whole numbers with + - * and brackets')

    try:
        return walk(ast.parse(problem, mode='eval').body)
    except SyntaxError as error:
        raise InputError(f'{problem!r} is not a sum of whole numbers with + - * and brackets'
                         ) from error


def random_sum(rng, level):
    """Level 1 `12 + 80`, level 2 `(12 + 80) * 3`, level 3 `(12 + 80) * (3 - 44)`."""
    def pair():
        return f'{rng.integers(MODULUS)} {"+-*"[rng.integers(3)]} {rng.integers(MODULUS)}'

    if level == 1:
        return pair()
    right = str(rng.integers(MODULUS)) if level == 2 else f'({pair()})'
    return f'({pair()}) {"+-*"[rng.integers(3)]} {right}'


def solve(language, problem, direction='', words=None):
    """The exact answer of a problem; `words` is the cipher's lexicon, see `cipher.lexicon`."""
    if language == 'arithmetic':
        return str(arithmetic(problem)[0])
    if language == 'stack':
        return stack.output(problem)
    if language == 'cipher':
        return cipher.translate(problem, words) if direction == 'to' else problem
    raise InputError(f'got language {language!r}, expected one of {", ".join(LANGUAGES)}')


def check(row, response):
    """Whether a model's response to a row is exactly right.

    Only the first non-empty line counts, white space is folded and a full stop at the end does not
    matter; anything else has to agree to the letter.
    """
    lines = [line for line in response.splitlines() if line.strip()]
    fold = lambda text: ' '.join(text.split()).removesuffix('.').rstrip()
    return bool(lines) and fold(lines[0]) == fold(row['answer'])


def split_of(language, problem):
    """'train' (80 %), 'validation' (10 %) or 'test' (10 %), by a hash of the problem alone."""
    key = arithmetic(problem)[1] if language == 'arithmetic' else problem
    digest = hashlib.sha256(f'{language}|{key}'.encode()).digest()
    tenth = int.from_bytes(digest[:8], 'big') % 10
    return {0: 'test', 1: 'validation'}.get(tenth, 'train')


def _prompt(language, problem, direction, words):
    if language == 'arithmetic':
        return f'Modulo {MODULUS}: {problem} ='
    if language == 'stack':
        return f'Program: {problem}\nOutput:'
    if direction == 'to':
        return f'English: {problem}\n{cipher.NAME}:'
    return f'{cipher.NAME}: {cipher.translate(problem, words)}\nEnglish:'


def rows(world, languages=LANGUAGES):
    """Rows of all three languages (or of some), in a fixed order."""
    seed = world.spec.seed
    words = cipher.lexicon(seed)
    make = {'arithmetic': random_sum, 'stack': stack.random_program,
            'cipher': cipher.random_sentence}
    for language in languages:
        for level in LEVELS:
            rng, seen = generator(seed, 'qa', 'languages', language, level), set()
            count = PROBLEMS_PER_LEVEL[world.spec.scale]
            for _ in range(count * TRIES):
                problem = make[language](rng, level)
                key = arithmetic(problem)[1] if language == 'arithmetic' else problem
                if key in seen:
                    continue
                seen.add(key)
                direction = ('to', 'from')[rng.integers(2)] if language == 'cipher' else ''
                prompt = _prompt(language, problem, direction, words)
                answer = solve(language, problem, direction, words)
                yield {'id': f'{language}-{level}-{len(seen) - 1}',
                       'split': split_of(language, problem), 'language': language, 'level': level,
                       'problem': problem, 'direction': direction, 'prompt': prompt,
                       'answer': answer, 'text': f'{prompt} {answer}'}
                if len(seen) == count:
                    break
