"""The lm-evaluation-harness on a tiny model: its numbers against our own logits."""

import collections
import json
import math
import os
import socket

import jax
import numpy as np
import pytest
import toy_models

from jaxllm.data.tokenizer import byte_tokenizer, train_bpe
from jaxllm.errors import InputError
from jaxllm.evals import harness, scoring, token_scores
from jaxllm.evals.choice import normalised
from jaxllm.models import transformer
from jaxllm.sharding import make_mesh

pytest.importorskip('lm_eval', reason="needs the extra `eval`: pip install -e '.[eval]'")

from jaxllm.evals.harness_model import HarnessModel  # noqa: E402

MAX_LENGTH = 24
CHOICES = [
    {'q': 'The cat sat on the', 'choices': ['mat', 'a very long table', 'hat'], 'gold': 0},
    {'q': 'Two and two make', 'choices': ['four', 'five', 'a', 'three hens'], 'gold': 2},
    {'q': 'A model learns', 'choices': ['text', 'the loss step by step'], 'gold': 1},
    {'q': 'the the the cat', 'choices': ['sat', 'text'], 'gold': 0},
    # Longer than MAX_LENGTH: its beginning is cut off.
    {'q': 'the cat sat on a mat and ' * 6, 'choices': ['mat', 'the table'], 'gold': 1}]
TEXTS = ['the cat sat on the mat', 'A model learns text from tokens, step by step. ' * 4, 'zebra é']
CONTEXTS = [text[:n] for text in TEXTS for n in range(1, 11)]  # short enough for all tests
YAML = {
    'choice': """
task: toy_choice
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
dataset_path: json
dataset_kwargs: {data_files: {test: choices.jsonl}}
test_split: test
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    'text': """
task: toy_text
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
dataset_path: json
dataset_kwargs: {data_files: {test: texts.jsonl}}
test_split: test
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    'write': """
task: toy_write
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
dataset_path: json
dataset_kwargs: {data_files: {test: answers.jsonl}}
test_split: test
generation_kwargs: {until: ["STOP"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""}


def lines(rows):
    return ''.join(json.dumps(row) + '\n' for row in rows)


Request = collections.namedtuple('Request', 'args')


class Toy:
    """A model, its tokenizer, and log-probs by hand: one row at a time, whole logits, float64."""

    def __init__(self, seed=5):
        self.tokenizer = train_bpe([' '.join(TEXTS) + ' the cat sat on the mat' * 9], 300)
        self.cfg = toy_models.config('llama', vocab_size=300, num_layers=1)
        self.mesh = make_mesh(devices=jax.devices()[:2])
        with jax.set_mesh(self.mesh):
            self.params = toy_models.params(self.cfg, seed)
            self.forward = jax.jit(lambda params, x: transformer.apply(params, self.cfg, x))
        self.seen = {}

    def logprobs(self, ids):
        """[L, V] for a list of ids."""
        key = tuple(ids)
        if key not in self.seen:
            # 2 equal rows, as the mesh wants; right padding does not count.
            row = np.zeros((2, 64), np.int32)
            row[:, :len(ids)] = ids
            with jax.set_mesh(self.mesh):
                logits = np.asarray(self.forward(self.params, row))[0, :len(ids)].astype(float)
            logits -= logits.max(-1, keepdims=True)
            self.seen[key] = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return self.seen[key]

    def end(self, head, tail, max_length=MAX_LENGTH):
        """(log p(tail | head), greedy) with the beginning cut off."""
        ids = (head + tail)[-max_length - 1:]
        table = self.logprobs(ids[:-1])[-len(tail):]
        return (sum(table[i, token] for i, token in enumerate(tail)),
                all(table.argmax(-1) == tail))

    def adapter(self, **options):
        options = {'max_length': MAX_LENGTH, 'batch_size': 2} | options
        return HarnessModel(self.params, self.cfg, self.tokenizer, **options)

    def ask(self, kind, *requests, **options):
        """What the adapter answers to requests of a kind."""
        with jax.set_mesh(self.mesh):
            return getattr(self.adapter(**options), kind)([Request(args) for args in requests])

    def ids(self, text):
        return [self.tokenizer.bos_id, *self.tokenizer.encode(text)]

    def greedy(self, ids, new):
        for _ in range(new):
            ids = ids + [int(self.logprobs(ids)[-1].argmax())]
        return ids[-new:]


@pytest.fixture(scope='module')
def toy():
    return Toy()


@pytest.fixture(scope='module')
def tasks(tmp_path_factory, toy):
    """A folder of three tasks with their data."""
    folder = tmp_path_factory.mktemp('tasks')
    for name, text in YAML.items():
        (folder / f'{name}.yaml').write_text(text)
    (folder / '_base.yaml').write_text('output_type: multiple_choice\n')
    (folder / 'choices.jsonl').write_text(lines(CHOICES))
    (folder / 'texts.jsonl').write_text(lines({'text': text} for text in TEXTS))
    (folder / 'answers.jsonl').write_text(lines(answers(toy)))
    return folder


def answers(toy):
    """Prompts whose greedy continuation is the answer, but for the last one."""
    prompts = ['the cat', 'A model', 'mat', 'the the']
    texts = [toy.tokenizer.decode(toy.greedy(toy.ids(p), 6))
             for p in prompts]
    texts[-1] = 'something else'
    return [{'prompt': p, 'answer': a} for p, a in zip(prompts, texts, strict=True)]


@pytest.fixture(scope='module')
def cache_folder(tmp_path_factory):
    """Where the `datasets` package converts data to."""
    import datasets
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path_factory.mktemp('datasets'))
    yield
    patch.undo()


@pytest.fixture(scope='module')
def results(toy, tasks, cache_folder):
    """All three tasks, with every way to a network shut."""
    def refuse(*args, **kwargs):
        raise AssertionError(f'a network was asked for: {args}')
    patch = pytest.MonkeyPatch()
    for name in ('connect', 'connect_ex', 'sendto'):
        patch.setattr(socket.socket, name, refuse)
    for name in ('getaddrinfo', 'create_connection', 'gethostbyname'):
        patch.setattr(socket, name, refuse)
    for name in ('HF_DATASETS_OFFLINE', 'HF_HUB_OFFLINE'):
        patch.setenv(name, '0')
    try:
        with jax.set_mesh(toy.mesh):
            yield harness.evaluate(
                toy.params, toy.cfg, toy.tokenizer,
                harness.HarnessConfig(str(tasks), max_length=MAX_LENGTH, batch_size=2))
    finally:
        patch.undo()


def test_multiple_choice_by_hand(toy, results):
    """acc: the greatest log p; acc_norm: the greatest log p per character of the choice."""
    acc, norm = [], []
    for doc in CHOICES:
        context = toy.ids(doc['q'].rstrip())
        scores = []
        for choice in doc['choices']:
            # The white space that the last question ends in belongs to the choice.
            text = doc['q'][len(doc['q'].rstrip()):] + ' ' + choice
            scores.append(toy.end(context, toy.tokenizer.encode(text))[0])
        acc.append(np.argmax(scores) == doc['gold'])
        norm.append(np.argmax([x / len(choice) for x, choice in zip(
            scores, doc['choices'], strict=True)]) == doc['gold'])
        item = next(item for item in results.items if item['prompt'] == doc['q'])
        assert [x for x, _ in item['given']] == pytest.approx(scores, abs=1e-4)
        assert item['correct'] == int(acc[-1]) and item['answer'] == doc['gold']
    assert 0 < sum(acc) < len(acc)
    metrics = results.metrics
    assert metrics['harness/toy_choice/acc']['value'] == pytest.approx(np.mean(acc), abs=1e-5)
    assert metrics['harness/toy_choice/acc_norm']['value'] == pytest.approx(np.mean(norm), abs=1e-5)
    assert metrics['harness/toy_choice/acc']['n'] == 5


def test_our_own_choices_are_normalised_as_in_the_harness(toy, results):
    docs = [doc for doc in CHOICES if all(  # not cut off
        len(toy.ids(f'{doc["q"]} {text}')) <= MAX_LENGTH for text in doc['choices'])]
    assert len(docs) == 3
    with jax.set_mesh(toy.mesh):
        scores = scoring.score_candidates(
            toy.params, toy.cfg, toy.tokenizer, [doc['q'] for doc in docs],
            [doc['choices'] for doc in docs])
    for doc, one in zip(docs, scores, strict=True):
        item = next(item for item in results.items if item['prompt'] == doc['q'])
        theirs = [x / len(text) for (x, _), text in zip(item['given'], doc['choices'],
                                                        strict=True)]
        assert normalised(one)['char'].tolist() == pytest.approx(theirs, abs=1e-4)
        assert int(np.argmax(theirs) == doc['gold']) == item['metrics']['acc_norm']


def rolling_by_hand(toy, text, max_length):
    """log p(text | BOS): the first window predicts `max_length` tokens; each later one, from the
    last token before it, as many more, the last window with as much context as there is room."""
    ids, total, done = toy.tokenizer.encode(text), 0.0, 0
    while done < len(ids):
        end = min(done + max_length, len(ids))
        seen = ([toy.tokenizer.bos_id] + ids)[:end + 1][-max_length - 1:]
        total += toy.end(seen[:-(end - done)], seen[-(end - done):], max_length)[0]
        done = end
    return total


def test_perplexity_by_hand(toy, results):
    totals = [rolling_by_hand(toy, text, MAX_LENGTH) for text in TEXTS]
    assert max(len(toy.tokenizer.encode(text)) for text in TEXTS) > 2 * MAX_LENGTH
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    # The second text ends in a space, behind which the harness counts one more word.
    num_words = sum(text.count(' ') + 1 for text in TEXTS)
    value = {name: results.metrics[f'harness/toy_text/{name}']['value']
             for name in ('word_perplexity', 'byte_perplexity', 'bits_per_byte')}
    assert value['bits_per_byte'] == pytest.approx(-sum(totals) / num_bytes / math.log(2), rel=1e-5)
    assert value['byte_perplexity'] == pytest.approx(math.exp(-sum(totals) / num_bytes), rel=1e-5)
    assert math.log(value['word_perplexity']) == pytest.approx(-sum(totals) / num_words, rel=1e-5)
    short = toy.ask('loglikelihood_rolling', (TEXTS[0],), ('',))
    assert short == pytest.approx([toy.end(toy.ids('')[:1], toy.tokenizer.encode(TEXTS[0]))[0], 0],
                                  abs=1e-5)


def test_generation_by_hand(toy, results):
    """Three of four answers are what greedy decoding by the full forward pass writes."""
    assert results.metrics['harness/toy_write/exact_match']['value'] == pytest.approx(0.75)
    given = [item['given'][0] for item in results.items if item['suite'] == 'harness/toy_write']
    assert given[:3] == [doc['answer'] for doc in answers(toy)][:3]


def test_limits_are_those_of_the_items(results):
    """Wilson's interval of 3 in 4, by hand: (p + z^2/2n -+ z sqrt(p q/n + z^2/4n^2)) / (1 + z^2/n).
    """
    z, n, p = 1.959964, 4, 0.75
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    metric = results.metrics['harness/toy_write/exact_match']
    assert [metric['low'], metric['high']] == pytest.approx(
        [(p + z * z / (2 * n) - half) / (1 + z * z / n),
         (p + z * z / (2 * n) + half) / (1 + z * z / n)], rel=1e-5)
    for name in ('word_perplexity', 'byte_perplexity', 'bits_per_byte'):
        metric = results.metrics[f'harness/toy_text/{name}']
        assert 0 < metric['low'] < metric['value'] < metric['high']
    assert json.dumps([results.metrics, results.items])  # nothing but plain values


def test_no_limits_where_a_metric_is_no_mean():
    assert harness._limits([0.1, 0.2, 0.9], 0.2, 0) == (None, None)  # a median
    assert harness._limits([('a', 'b'), ('c', 'd')], 31.0, 0) == (None, None)  # texts: BLEU
    assert harness._limits([], 0.5, 0) == (None, None)
    low, high = harness._limits([-1.0, -2.0, -3.0, -2.0], math.exp(2.0), 0)  # perplexity
    assert math.exp(1) <= low < math.exp(2) < high <= math.exp(3)


def test_the_network_is_shut_for_local_tasks(results):
    """The fixture had set these to 0, and any connection would have failed."""
    import datasets
    import huggingface_hub
    assert datasets.config.HF_HUB_OFFLINE and huggingface_hub.constants.HF_HUB_OFFLINE
    assert os.environ['HF_DATASETS_OFFLINE'] == os.environ['HF_HUB_OFFLINE'] == '1'


def test_where_a_context_ends(toy):
    pair, bos, encode = toy.adapter().encode_pair, toy.tokenizer.bos_id, toy.tokenizer.encode
    assert pair('the cat', ' sat') == ([bos, *encode('the cat')], encode(' sat'))
    # A space at the end of the context moves: the tokens are those of ' sat'.
    assert pair('the cat ', 'sat') == pair('the cat', ' sat')
    assert pair('', 'mat') == ([bos], encode('mat'))
    assert pair('  ', 'mat') == ([bos], encode('  mat'))
    # ' th' + 'e' is one token in the whole, so that nothing stands behind the first: cut alone.
    whole, head = encode('a the'), encode('a th')
    assert len(whole) <= len(head), 'the tokenizer has to merge over the boundary here'
    assert pair('a th', 'e') == ([bos, *head], encode('e'))
    # A special token in a text is text, and BOS is not doubled.
    assert pair('<|bos|> the', ' cat')[0].count(bos) == 1


def test_loglikelihood(toy):
    """An empty context, an empty continuation, and one that greedy decoding writes."""
    context, ids = next(
        (text, ids) for text in CONTEXTS for ids in [toy.greedy(toy.ids(text), 1)]
        if toy.tokenizer.encode(text + toy.tokenizer.decode(ids)) == toy.ids(text)[1:] + ids)
    written = toy.tokenizer.decode(ids)
    got = toy.ask('loglikelihood', ('', 'mat'), (context, written), ('the cat', ' sat'), ('a', ''))
    bos = toy.ids('')[:1]
    want = [toy.end(bos, toy.tokenizer.encode('mat')), toy.end(toy.ids(context), ids),
            toy.end(toy.ids('the cat'), toy.tokenizer.encode(' sat')), (0.0, True)]
    assert [x for x, _ in got] == pytest.approx([x for x, _ in want], abs=1e-5)
    assert [greedy for _, greedy in got] == [bool(greedy) for _, greedy in want]
    assert [greedy for _, greedy in got] == [False, True, False, True]


def test_the_left_end_is_cut(toy):
    """A token that no longer fits changes nothing; max_length tokens are seen, not fewer."""
    long = ' cat sat on a mat and' * 8
    tail = toy.tokenizer.encode(' mat')
    head = toy.tokenizer.encode('the' + long)[-(MAX_LENGTH + 1 - len(tail)):]
    want = toy.end(head, tail)[0]
    got = toy.ask('loglikelihood', ('the' + long, ' mat'), ('a zebra' + long, ' mat'))
    assert [x for x, _ in got] == pytest.approx([want, want], abs=1e-5)
    with pytest.raises(InputError, match='has [0-9]+ tokens, and the model sees 24 at once'):
        toy.ask('loglikelihood', ('the', long + ' x'))


def test_generate_until(toy):
    """Stop strings, the maximum of tokens, a context that is too long."""
    context, free = next(
        (text, free) for text in CONTEXTS
        for free in [toy.tokenizer.decode(toy.greedy(toy.ids(text), 10))]
        if free.isascii() and len(free) > 4 and free.find(free[3:5]) > 0)
    stop = free[3:5]
    cut = free[:free.find(stop)]
    got = toy.ask('generate_until', (context, {'until': [], 'max_gen_toks': 10}),
                  (context, {'until': [stop, ''], 'max_gen_toks': 10}),
                  (context, {'until': stop, 'max_gen_toks': 10, 'do_sample': False}))
    assert got == [free, cut, cut] and cut
    room = MAX_LENGTH - 10
    head = toy.ids('the cat sat on a mat ' * 9)[-room:]
    want = toy.tokenizer.decode(toy.greedy(head, 10))
    assert toy.ask('generate_until', ('the cat sat on a mat ' * 9, {'max_gen_toks': 10})) == [want]


def test_eos_ends_an_answer(toy):
    """With the likeliest second token as EOS, one token is written."""
    context, first, second = next(
        (text, *ids) for text in CONTEXTS for ids in [toy.greedy(toy.ids(text), 2)]
        if ids[0] != ids[1])

    class Other:
        def __getattr__(self, name):
            return second if name == 'eos_id' else getattr(toy.tokenizer, name)

    with jax.set_mesh(toy.mesh):
        model = HarnessModel(toy.params, toy.cfg, Other(), max_length=MAX_LENGTH, batch_size=2)
        got = model.generate_until([Request((context, {'max_gen_toks': 10}))])
    assert got == [toy.tokenizer.decode([first])]


def test_sampling(toy):
    """Repeats of a request differ, the same seed gives the same, other settings are kept apart."""
    sampled = ('the cat', {'max_gen_toks': 10, 'do_sample': True, 'temperature': 1.5})
    greedy = ('the cat', {'max_gen_toks': 10, 'do_sample': False, 'temperature': 1.5})
    got = toy.ask('generate_until', sampled, greedy, sampled, sampled, seed=1)
    assert len({got[0], got[2], got[3]}) == 3
    assert got[1] == toy.tokenizer.decode(toy.greedy(toy.ids('the cat'), 10))
    assert got == toy.ask('generate_until', sampled, greedy, sampled, sampled, seed=1)


@pytest.mark.parametrize('settings, message', [
    ({'max_gen_toks': 24}, 'max_gen_toks=24 tokens, and the model sees 24'),
    ({'num_beams': 4}, "generation_kwargs of a task has .'num_beams'."),
    ({'top_p': 2.0, 'do_sample': True, 'temperature': 1.0}, 'sampling.top_p=2.0'),
])
def test_what_cannot_be_generated(settings, message, toy):
    with pytest.raises(InputError, match=message):
        toy.ask('generate_until', ('the cat', settings))


def test_batches_change_nothing(toy, tasks):
    """Rows alone, and in another order."""
    pairs = [(doc['q'], ' ' + choice) for doc in CHOICES for choice in doc['choices']]
    want = toy.ask('loglikelihood', *pairs)
    got = toy.ask('loglikelihood', *pairs[::-1], batch_size=1)[::-1]
    assert [x for x, _ in got] == pytest.approx([x for x, _ in want], abs=1e-5)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in want]


def test_learned_positions_end():
    """A model of 32 positions sees 32 tokens and predicts one more; columns are no multiple of 8.
    """
    cfg = toy_models.config('gpt2', max_seq_len=29, num_layers=1)
    mesh = make_mesh(devices=jax.devices()[:1])
    ids = toy_models.tokens(cfg, 30).tolist()
    with jax.set_mesh(mesh):
        params = toy_models.params(cfg)
        logits = np.asarray(jax.jit(lambda params, x: transformer.apply(params, cfg, x))(
            params, np.array([ids[:-1]])))[0].astype(float)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        totals, _ = token_scores.score_ends(params, cfg, [ids, ids[:9]], [1, 7])
        want = [logprobs[np.arange(29), ids[1:]].sum(), logprobs[[6, 7], ids[7:9]].sum()]
        assert totals == pytest.approx(want, abs=1e-4)
        with pytest.raises(InputError, match='31 tokens, and the model 29 learned positions'):
            token_scores.score_ends(params, cfg, [ids + [3]], [1])
        with pytest.raises(InputError, match='from 3 to 41, outside the vocabulary of 41 ids'):
            token_scores.score_ends(params, cfg, [[3, 41]], [1])
        with pytest.raises(InputError, match='max_length=30 is more than the 29 learned'):
            HarnessModel(params, cfg, byte_tokenizer(), max_length=30)


def evaluate(toy, tasks, **options):
    with jax.set_mesh(toy.mesh):
        return harness.evaluate(toy.params, toy.cfg, toy.tokenizer, harness.HarnessConfig(
            str(tasks), **{'max_length': MAX_LENGTH, 'batch_size': 2} | options))


def test_several_filters_of_a_task_are_told_apart(toy, tasks, tmp_path, cache_folder):
    filters = ''.join(f"""
  - {{name: {name}, filter: [{{function: regex, regex_pattern: "{pattern}"}},
                           {{function: take_first}}]}}""" for name, pattern in (
                               ('one', '(.)'), ('two', '(..)')))
    (tmp_path / 'write.yaml').write_text(f'{YAML["write"]}filter_list:{filters}\n')
    (tmp_path / 'answers.jsonl').write_text((tasks / 'answers.jsonl').read_text())
    found = evaluate(toy, tmp_path, limit=2)
    assert sorted((item['id'], item['subject']) for item in found.items) == [
        ('toy_write/0/one', 'toy_write/0'), ('toy_write/0/two', 'toy_write/0'),
        ('toy_write/1/one', 'toy_write/1'), ('toy_write/1/two', 'toy_write/1')]


def test_files_limits_and_examples(toy, tasks, cache_folder):
    """Single files, a limit of items, and worked examples before each."""
    files = f'{tasks / "choice.yaml"}, {tasks / "text.yaml"}'
    found = evaluate(toy, files, limit=2, num_fewshot=1)
    assert {name: metric['n'] for name, metric in found.metrics.items()} == dict.fromkeys([
        'harness/toy_choice/acc', 'harness/toy_choice/acc_norm', 'harness/toy_text/bits_per_byte',
        'harness/toy_text/byte_perplexity', 'harness/toy_text/word_perplexity'], 2)
    prompts = [item['prompt'] for item in found.items if item['suite'] == 'harness/toy_choice']
    assert all(prompt.count('\n\n') == 1 for prompt in prompts) and len(prompts) == 2


@pytest.mark.parametrize('name, text, message', [
    ('bad', 'task: [', 'cannot be loaded'),
    ('bad', 'output_type: multiple_choice', 'cannot be loaded'),
    ('bad', YAML['choice'].replace('choices.jsonl', 'nowhere.jsonl'), 'nowhere.jsonl'),
    ('_bad', YAML['choice'], 'holds no task'),
])
def test_tasks_that_cannot_be_read(name, text, message, toy, tmp_path, cache_folder):
    """None is skipped in silence."""
    (tmp_path / f'{name}.yaml').write_text(text)
    with pytest.raises(InputError, match=message):
        evaluate(toy, tmp_path)


@pytest.mark.parametrize('values, message', [
    (dict(tasks=' ,'), 'names no task'),
    (dict(tasks='no/such/folder'), "no such file or folder: 'no/such/folder'"),
    (dict(limit=-1), 'limit=-1 must be at least 0'),
    (dict(max_length=1), 'max_length=1 must be at least 2'),
])
def test_bad_settings(values, message):
    with pytest.raises(InputError, match=message):
        harness.HarnessConfig(**{'tasks': 'arc_easy', 'max_length': 8} | values)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[eval\]'"):
        harness.check_installed()
