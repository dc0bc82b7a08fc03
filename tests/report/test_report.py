"""The report of a run: its numbers, its safety, and what it does with missing pieces."""

import html.parser
import json
import math
import re

import pytest

from jaxllm.errors import InputError
from jaxllm.report import feedback, files, page, plots, sections
from jaxllm.report.run import write_report
from jaxllm.train.metrics import Metrics

ATTACK = '<script>alert("1")</script>&'


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs') / 'my_run'
    write_json(folder / 'config.json', {
        'stage': 'jaxllm.stages.pretrain', 'train': {'num_steps': 60, 'lr': 0.00125},
        'model': {'num_layers': 3, 'd_model': 48, 'vocab_size': 4096}, 'label': ATTACK})
    write_json(folder / 'lineage.json', {
        'parents': {'init_from': {'run': 'runs/parent_a', 'fingerprint': 'f00dcafe'}},
        'num_params': 1_234_567, 'git': 'abc123', 'python': '3.11.9',
        'packages': {'jax': '0.10.2', 'flax': '0.12.8'}})
    write_json(folder / 'tokenizer/fertility.json', [
        {'language': 'de', 'tokens_per_word': 1.875, 'bytes_per_token': 4.125}])
    write_json(folder / 'data/summary.json', {'books': {
        'documents': 12345, 'tokens': 7654321, 'licence': ATTACK, 'share': .625,
        'rejects': {'too_short': 17}}, 'code': {'documents': 60, 'license': '', 'rejects': {
            'code': {'read': 63, 'rejected': 3, 'reasons': {'duplicate': 2, 'empty': 1}}}}})
    writer = Metrics(folder, None, is_writer=True, tensorboard=False)
    for step in range(1, 51):
        skipped = step in (13, 31)
        writer.train(step, {'loss': math.nan if step == 13 else 9 - step / 10,
                            'tokens': 1000 * step,
                            'grad_norm': math.inf if skipped else 1., 'skipped': int(skipped),
                            'lr': 1e-3, 'nll': 3., 'update_norm': .1, 'accuracy': .5})
        if step % 10 == 0:
            writer.eval(step, {'val/loss': 3.125 if step == 40 else 3.4375 + 1 / step,
                               'val/bits_per_byte': 1.0625, 'val/accuracy': .375,
                               'val/books/bits_per_byte': .8125})
            writer.perf(step, {'tokens_per_second': 12300., 'step_time_s': .1, 'mfu': .3125,
                               'data_wait_share': .01, 'memory_bytes': 2 ** 30,
                               'peak_rss_bytes': 3 * 2 ** 30})
            writer.sample(step, {'prompt': f'Say {ATTACK}', 'completion': f'{ATTACK} {step}'})
    writer.note(7, f'3 lines repaired in {ATTACK}')
    writer.note(8, f'3 lines repaired in {ATTACK}')
    writer.close()
    return folder


@pytest.fixture(scope='module')
def text(workdir):
    return write_report(workdir).read_text(encoding='utf-8')


def visible(text):
    """The text of a page, without tags; checks on the way that every element is closed."""
    words, open_tags = [], []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ('meta', 'br'):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

        def handle_data(self, data):
            if open_tags[-1:] != ['style']:
                words.append(data)

    parser = Parser()
    parser.feed(text)
    parser.close()
    assert not open_tags
    return ' '.join(' '.join(words).split())


def test_contains_the_numbers(text):
    words = visible(text)
    for expected in (
            'pretrain: my_run', '1.23M parameters', 'layers 3, width 48, vocabulary 4,096',
            'step 50 of 60', 'Python 3.11.9, jax 0.10.2',
            'Validation loss 3.4575 nats per token, step 50; best 3.1250 at 40',
            'Validation 1.0625 bits per byte', 'Next-token accuracy 37.5 %',
            'Tokens seen 50k in 50 steps', 'Skipped steps 2', 'Speed 12.3k tokens/s',
            'MFU 31.2 %', 'Process memory 3 GiB', 'Device memory 1 GiB',
            'books 0.8125', 'skipped step 2', '2 times: steps 7, 8',
            '12,345', '7,654,321', '0.625', 'too short 17',
            '3 of 63 (duplicate 2, empty 1)', 'tokens per word', '1.875', '4.125',
            '0.00125', 'init_from runs/parent_a f00dcafe', 'abc123', '0.12.8'):
        assert expected in words, expected


def test_escapes_what_it_shows(text):
    assert '<script' not in text
    assert visible(text).count(ATTACK) >= 5


def test_needs_no_network(text):
    assert not re.search(r'https?:|//|@import|src=|<link', text)
    assert set(re.findall(r'url\(([^)]*)\)', text)) <= {
        f'#{name}' for name in re.findall(r'clipPath id="([^"]*)"', text)}
    assert all(link.startswith('#') for link in re.findall(r'href="([^"]*)"', text))
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids)) > 8
    assert 'prefers-color-scheme: dark' in text and 'width=device-width' in text


def test_curves_hold_no_broken_coordinates(text):
    svgs = ''.join(re.findall(r'<svg.*?</svg>', text, re.DOTALL))
    assert svgs and not re.search(r'\b(nan|inf)\b', svgs)
    # Two skipped steps, marked in the loss and in the gradient norm.
    assert svgs.count('class="mark"') == 4
    # Every curve in a legend has a name.
    assert '</i> <b' not in text


@pytest.mark.parametrize('kept', [
    ['config.json'], ['lineage.json'], ['metrics.jsonl'], ['perf.jsonl'], ['samples.jsonl'],
    ['tokenizer/fertility.json'], ['data/summary.json'], ['config.json', 'samples.jsonl']])
def test_any_piece_may_be_missing(workdir, tmp_path, kept):
    for name in kept:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    words = visible(write_report(tmp_path).read_text())
    assert ('Samples' in words) == ('samples.jsonl' in kept)
    assert ('Tokenizer' in words) == ('tokenizer/fertility.json' in kept)
    assert ('No curves yet' in words) == (kept[0] not in ('metrics.jsonl', 'perf.jsonl'))


def test_a_run_at_its_very_beginning(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text(
        '{"step": 0, "kind": "eval", "val/loss": "nan"}\n'
        '{"step": 1, "kind": "train", "loss": 9.0, "grad_norm": 0.0, "lr": 0.0}\n{"step": 2, "k')
    (tmp_path / 'samples.jsonl').write_text('{"step": 0, "prompt": "", "completion": ""}\n')
    (tmp_path / 'perf.jsonl').write_text(
        '{"step": 1, "kind": "perf", "tokens_per_second": 950.0}\n')
    text = write_report(tmp_path).read_text()
    assert 'Speed 950 tokens/s' in visible(text)
    assert 'Validation loss nan nats, step 0' in visible(text)  # no bits per byte: no text
    assert '(nothing)' in text and text.count('<circle') == 3


def test_missing_or_empty_directories_are_input_errors(tmp_path):
    with pytest.raises(InputError, match='is no directory'):
        write_report(tmp_path / 'nowhere')
    with pytest.raises(InputError, match='none of the files of a run'):
        write_report(tmp_path)
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(InputError, match='config.json is not valid JSON'):
        write_report(tmp_path)
    assert not (tmp_path / 'report.html').exists()


def test_further_sections_are_shown(workdir):
    extra = page.Section('Win rate', '<p>0.55</p>')
    assert '<section id="win-rate"><h2>Win rate</h2>' in write_report(workdir, [extra]).read_text()


def test_notes_are_counted_and_bounded():
    records = [{'step': step, 'text': f'note {step // 2}'} for step in range(60)]
    shown = visible(sections.notes(records))
    assert 'note 0 2 times: steps 0, 1' in shown and 'note 19' in shown and 'note 20' not in shown
    assert shown.endswith('10 more are in metrics.jsonl and perf.jsonl')


def test_samples_show_first_and_last_step():
    records = [{'step': step, 'prompt': 'p', 'completion': f'c{step}'} for step in range(20)]
    open_part = sections.samples(records).split('<details>')[0]
    assert re.findall(r'>c(\d+)<', open_part)[::4] == ['19', '0']
    assert sections.samples(records).count('class="try"') == 20


@pytest.mark.parametrize('low,high', [(0., 1.), (2.1, 2.3), (-3., 12345.), (1e-5, 3e-5)])
def test_linear_ticks_are_few_round_and_inside(low, high):
    ticks = plots.linear_ticks(low, high)
    assert 3 <= len(ticks) <= 7
    assert low - 1e-9 <= ticks[0] and ticks[-1] <= high + 1e-9
    assert all(len(plots.tick_label(tick)) <= 7 for tick in ticks)


def test_thinning_keeps_spikes_and_the_last_point():
    points = [(x, 0.) for x in range(5000)]
    points[1234] = (1234, 99.)
    points[2345] = (2345, -9.)
    points += [(5000, 0.5), (5001, -0.5), (5002, 0.)]
    thinned = plots.thin(points)
    assert len(thinned) <= 402 and {points[1234], points[2345], points[-1]} <= set(thinned)
    assert list(thinned) == sorted(thinned)


def test_the_trend_has_no_lag_and_ignores_spikes():
    points = [(x, 3. * x) for x in range(40)]
    points[17] = (17, 1e6)
    # Stretches of five: the middle of each; in the one with the spike the next in order.
    assert plots.smooth(points) == (
        (2, 6.), (7, 21.), (12, 36.), (17, 54.), (22, 66.), (27, 81.), (32, 96.), (37, 111.))
    assert len(plots.smooth([(x, 0.) for x in range(999)])) == 80
    assert plots.smooth([(4, 2.)]) == ((4, 2.),)


@pytest.mark.parametrize('content', [
    {'sources': {'a': {'n': 1}}}, {'a': {'n': 1}}, [{'source': 'a', 'n': 1}],
    {'sources': [{'source': 'a', 'n': 1}]}])
def test_rows_may_be_written_in_several_ways(content):
    assert files.rows_of(content, 'x.json') == ({'source': 'a', 'n': 1},)


def test_rows_that_are_no_rows():
    with pytest.raises(InputError, match='x.json holds no rows'):
        files.rows_of([1, 2], 'x.json')


@pytest.mark.parametrize('number,expected', [
    (950, '950'), (999_700, '1M'), (12_345, '12.3k'), (2.1e9, '2.1B'), (0.5, '0.5')])
def test_short_numbers(number, expected):
    assert page.short(number) == expected


def test_sizes():
    assert [page.size_of(n) for n in (512, 1536, 3 * 2 ** 30, 1010 * 2 ** 20)] == [
        '512 B', '1.5 KiB', '3 GiB', '1,010 MiB']


def test_rankings_stand_best_first_and_escaped(tmp_path):
    (tmp_path / 'feedback.json').write_text(json.dumps(
        {'prompts': 3, 'samples': 2, 'rankings': {'helpful': 1}}))
    (tmp_path / 'helpful.jsonl').write_text(json.dumps(
        {'prompt': [{'role': 'user', 'content': '1 < 2?'}], 'responses': ['no', '<yes>'],
         'ranks': [2, 1]}) + '\n')
    counts, examples = feedback.sections(tmp_path)
    assert 'helpful' in counts.body and '1 &lt; 2?' in examples.body
    assert examples.body.index('&lt;yes&gt;') < examples.body.index('>no<')
    assert feedback.sections(tmp_path / 'nothing') == ()
