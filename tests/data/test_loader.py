"""Batches: pure in the step, the same for any number of processes, every target once."""

import dataclasses
import itertools
import threading

import numpy as np
import pytest
from toy_store import ByteTokenizer, make_store, random_text

from jaxllm.data.infill import InfillConfig
from jaxllm.data.loader import PackedData, EvalBatches
from jaxllm.data.records import Document
from jaxllm.data.store import TokenStore, write_store
from jaxllm.data.tokenizer import train_bpe
from jaxllm.errors import InputError

L, B = 24, 4
SPM_AND_PSM = InfillConfig(kind='fim', rate=0.7)
SPANS = InfillConfig(kind='span', rate=0.7)


@pytest.fixture(scope='module')
def stores(tmp_path_factory):
    """Two stores; documents of the first are distinct and some are longer than a row."""
    folder = tmp_path_factory.mktemp('stores')
    rng = np.random.default_rng(0)
    return {'a': make_store(folder / 'a', rng.integers(3, 90, 60), holdout_share=0.2),
            'b': make_store(folder / 'b', rng.integers(3, 20, 90), seed=1, holdout_share=0.2)}


def make_data(stores, weights=(1.0,), **changes):
    components = [(name, stores[name].train, weight)
                  for name, weight in zip('ab'[:len(weights)], weights, strict=True)]
    settings = {'seq_len': L, 'batch_size': B, 'seed': 0} | changes
    return PackedData(components, **settings)


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def joined(parts):
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def epoch(data, name='a'):
    """All batches of the first epoch, up to the rows of the last partial batch."""
    num_rows = data.plans[name].num_rows
    steps = -(-num_rows // data.batch_size)
    return {key: values[:num_rows]
            for key, values in joined([data(i) for i in range(steps)]).items()}


def segments(batch):
    """Yields (inputs, targets with a weight, positions, row) of every segment."""
    for row in range(len(batch['tokens'])):
        ids = batch['segment_ids'][row]
        for segment in range(1, ids.max() + 1):
            here = ids == segment
            weighted = here & (batch['loss_weights'][row] > 0)
            yield (batch['tokens'][row][here], batch['targets'][row][weighted],
                   batch['positions'][row][here], row)


def test_shapes_and_kinds(stores):
    batch = make_data(stores, (0.6, 0.4))(5)
    kinds = {'tokens': np.int32, 'targets': np.int32, 'loss_weights': np.float32,
             'segment_ids': np.int32, 'positions': np.int32}
    for key, kind in kinds.items():
        assert batch[key].shape == (B, L) and batch[key].dtype == kind
    assert batch['num_bytes'].shape == (B,) and batch['num_bytes'].dtype == np.float32
    assert set(batch) == {*kinds, 'num_bytes'}


@pytest.mark.parametrize('infill', [InfillConfig(), SPM_AND_PSM, SPANS])
@pytest.mark.parametrize('process_count', [2, 4])
def test_processes_share_one_global_batch(stores, process_count, infill):
    whole = make_data(stores, (0.7, 0.3), infill=infill)
    parts = [make_data(stores, (0.7, 0.3), infill=infill, process_index=p,
                       process_count=process_count) for p in range(process_count)]
    for i in (0, 1, 17, 400):
        same(whole(i), joined([part(i) for part in parts]))


def test_resume_with_another_number_of_processes(stores):
    uninterrupted = list(itertools.islice(make_data(stores, (0.7, 0.3)).iterate(0), 9))
    before = list(itertools.islice(make_data(stores, (0.7, 0.3)).iterate(0), 4))
    after = [make_data(stores, (0.7, 0.3), process_index=p, process_count=2).iterate(4)
             for p in range(2)]
    resumed = before + [joined([next(part) for part in after]) for _ in range(5)]
    for got, want in zip(resumed, uninterrupted, strict=True):
        same(got, want)


@pytest.mark.parametrize('infill', [InfillConfig(), SPM_AND_PSM])
def test_iterate_is_source(stores, infill):
    data = make_data(stores, (0.5, 0.5), infill=infill)
    batches = list(itertools.islice(data.iterate(3), 6))
    for k in (5, 0, 2, 4, 1, 3):  # Pure: any order, any number of times.
        same(batches[k], data(3 + k, state={'step': 1}))
        same(batches[k], make_data(stores, (0.5, 0.5), infill=infill)(3 + k))


def test_iterate_ends_its_thread_and_passes_errors_on(stores, monkeypatch):
    data = make_data(stores)
    batches = data.iterate(0)
    next(batches)
    assert any(thread.name.startswith('input') for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith('input') for thread in threading.enumerate())
    monkeypatch.setattr(PackedData, '__call__', lambda self, i: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        next(data.iterate(0))


def test_every_target_once_per_epoch(stores):
    split = stores['a'].train
    data = make_data(stores)
    seen = np.concatenate([targets for _, targets, _, _ in segments(epoch(data))])
    assert len(seen) == split.num_tokens - split.num_documents
    starts = split.offsets[:-1]
    expected = np.delete(np.asarray(split.tokens), starts)
    np.testing.assert_array_equal(np.sort(seen), np.sort(expected))
    # The pieces together are the documents: each is found where no other one was, longest first.
    stored = split.tokens.astype(np.int32).tobytes()
    covered = np.zeros(split.num_tokens, int)
    pieces = [np.concatenate([inputs[:1], targets]).astype(np.int32).tobytes()
              for inputs, targets, _, _ in segments(epoch(data))]
    for piece in sorted(pieces, key=len, reverse=True):
        at = stored.find(piece)
        while at >= 0 and (at % 4 or covered[at // 4 + 1:(at + len(piece)) // 4].any()):
            at = stored.find(piece, at + 1)
        assert at >= 0
        covered[at // 4 + 1:(at + len(piece)) // 4] += 1
    assert (np.delete(covered, starts) == 1).all()
    assert (covered[starts] == 0).all()


def test_second_epoch_is_another_order(stores):
    data = make_data(stores, batch_size=1)
    rows = data.plans['a'].num_rows
    first, second = ([data(e * rows + r)['tokens'][0].tobytes() for r in range(rows)]
                     for e in range(2))
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != sorted(first)


def test_cut_documents_get_no_forged_eos(stores):
    split = stores['a'].train
    data = make_data(stores, infill=SPM_AND_PSM)
    assert data.plans['a'].num_cut > 5
    batch = epoch(data)
    targets = batch['targets'][batch['loss_weights'] > 0]
    assert (targets == split.eos_id).sum() == split.num_documents
    assert (targets == split.bos_id).sum() == 0


def test_no_loss_towards_the_next_segment(stores):
    batch = epoch(make_data(stores))
    ids, weights = batch['segment_ids'], batch['loss_weights']
    last_of_segment = ids[:, :-1] != ids[:, 1:]
    assert last_of_segment.sum() > 20
    assert (weights[:, :-1][last_of_segment] == 0).all()
    assert (weights[ids == 0] == 0).all()
    assert (weights[:, :-1][~last_of_segment & (ids[:, :-1] > 0)] == 1).all()
    bos_targets = batch['targets'] == 1
    assert bos_targets.sum() > 5 and (weights[bos_targets] == 0).all()


def test_segments_are_single_documents(stores):
    split = stores['a'].train
    documents = [split.document(i).astype(np.int32).tobytes() for i in range(split.num_documents)]
    for inputs, _, positions, _ in segments(epoch(make_data(stores))):
        assert any(inputs.astype(np.int32).tobytes() in document for document in documents)
        np.testing.assert_array_equal(positions, np.arange(len(inputs)))


@pytest.mark.parametrize('infill', [InfillConfig(), SPM_AND_PSM])
def test_pad_is_decided_by_segment_not_by_id(tmp_path, infill):
    """pad_id == eos_id: every true EOS has weight 1, and padding has none."""
    store = make_store(tmp_path / 's', [5, 6, 7, 9, 11, 4, 12], tokenizer=ByteTokenizer(pad_id=2))
    data = PackedData([('s', store.train, 1.0)], seq_len=15, batch_size=2, seed=0, infill=infill)
    batch = epoch(data, 's')
    assert (batch['tokens'][batch['segment_ids'] == 0] == 2).all()
    assert (batch['positions'][batch['segment_ids'] == 0] == 0).all()
    eos = (batch['targets'] == 2) & (batch['loss_weights'] == 1)
    assert eos.sum() == 7


@pytest.mark.parametrize('infill', [InfillConfig(), SPM_AND_PSM])
def test_bytes_of_an_epoch_are_those_of_the_text(stores, infill):
    split = stores['a'].train
    batch = epoch(make_data(stores, infill=infill))
    assert batch['num_bytes'].sum() == split.text_bytes.sum()
    text = (batch['targets'] >= ByteTokenizer().offset) & (batch['loss_weights'] > 0)
    np.testing.assert_array_equal(batch['num_bytes'], text.sum(1))


@pytest.mark.parametrize('infill', [SPM_AND_PSM, SPANS])
def test_infill_differs_between_epochs_and_seeds_not_runs(stores, infill):
    def sorted_rows(seed, number):
        data = make_data(stores, batch_size=1, seed=seed, infill=infill)
        rows = data.plans['a'].num_rows
        return sorted(data(number * rows + r)['tokens'][0].tobytes() for r in range(rows))

    assert sorted_rows(0, 0) == sorted_rows(0, 0)
    assert sorted_rows(0, 0) != sorted_rows(0, 1)
    assert sorted_rows(0, 0) != sorted_rows(1, 0)


def test_span_infilling_weights_only_the_infill_part(stores):
    split = stores['b'].train
    mask = split.special['<|mask_0|>']
    data = PackedData([('b', split, 1.0)], seq_len=L, batch_size=B, seed=0,
                      infill=InfillConfig(kind='span', rate=1.0))
    for inputs, targets, _, _ in segments(epoch(data, 'b')):
        assert (inputs == mask).sum() in (0, 1, 2)
        if (inputs == mask).sum() == 2:
            assert targets[0] == mask
            assert len(targets) <= len(inputs) - 2


def test_realised_mixture(stores):
    data = make_data(stores, (0.7, 0.3))
    rows_of = dict.fromkeys('ab', 0)
    rows_a = {row.tobytes() for row in epoch(make_data(stores))['tokens']}
    steps = 250
    for i in range(steps):
        for row in data(i)['tokens']:
            rows_of['a' if row.tobytes() in rows_a else 'b'] += 1
    share = rows_of['a'] / (steps * B)
    assert share == pytest.approx(0.7, abs=0.002)
    assert share == pytest.approx(data.shares['a'], abs=1e-3)
    assert sum(data.shares.values()) == pytest.approx(1)
    epochs = data.epochs(steps)
    for name in 'ab':
        assert epochs[name] == pytest.approx(rows_of[name] / data.plans[name].num_rows, rel=0.01)


def test_components_of_equal_length_have_unrelated_orders(stores):
    """Grain shuffles epoch e with seed + e: near seeds would repeat an order one epoch later."""
    split = stores['a'].train
    data = PackedData([('x', split, 1.0), ('y', split, 1.0)], seq_len=L, batch_size=2, seed=0)
    rows = data.plans['x'].num_rows
    order = {'x': [], 'y': []}
    for i in range(3 * rows):
        batch = data(i)
        for name, row in zip('xy', batch['tokens'], strict=True):
            order[name].append(row.tobytes())
    orders = [order[name][e * rows:(e + 1) * rows] for name in 'xy' for e in range(3)]
    for first, second in itertools.combinations(orders, 2):
        assert sorted(first) == sorted(second) and first != second


def test_fingerprint_covers_everything_but_the_processes(stores):
    base = make_data(stores, (0.7, 0.3)).fingerprint
    assert base == make_data(stores, (0.7, 0.3), process_index=1, process_count=2).fingerprint
    others = [make_data(stores, (0.6, 0.4)), make_data(stores),
              make_data(stores, (0.7, 0.3), seed=1),
              make_data(stores, (0.7, 0.3), seq_len=25),
              make_data(stores, (0.7, 0.3), batch_size=8),
              make_data(stores, (0.7, 0.3), infill=SPANS)]
    assert len({base, *(data.fingerprint for data in others)}) == 1 + len(others)


@pytest.mark.parametrize('process_count', [1, 2])
@pytest.mark.parametrize('batch_size', [4, 6])
def test_eval_counts_every_target_once(stores, batch_size, process_count):
    split = stores['a'].validation
    parts = [EvalBatches(split, seq_len=L, batch_size=batch_size, process_index=p,
                         process_count=process_count) for p in range(process_count)]
    batches = [joined(list(same_step)) for same_step in zip(*parts, strict=True)]
    assert len(batches) == len(parts[0]) == -(-parts[0].num_rows // batch_size)
    assert all(batch['tokens'].shape == (batch_size, L) for batch in batches)
    whole = joined(batches)
    expected = np.delete(np.asarray(split.tokens), split.offsets[:-1])
    targets = whole['targets'][whole['loss_weights'] > 0]
    np.testing.assert_array_equal(np.sort(targets), np.sort(expected))
    assert whole['loss_weights'].sum() == parts[0].num_targets
    assert whole['num_bytes'].sum() == split.text_bytes.sum()
    padding = len(whole['tokens']) - parts[0].num_rows
    assert 0 <= padding < batch_size
    assert (whole['segment_ids'][parts[0].num_rows:] == 0).all()


def test_eval_max_rows_spreads_over_the_plan(stores):
    split = stores['a'].train
    everything = EvalBatches(split, seq_len=L, batch_size=3)
    few = EvalBatches(split, seq_len=L, batch_size=3, max_rows=7)
    assert (few.num_rows, len(few)) == (7, 3)
    assert few.fingerprint != everything.fingerprint
    rows = [row.tobytes() for row in joined(list(everything))['tokens'][:everything.num_rows]]
    chosen = [rows.index(row.tobytes()) for row in joined(list(few))['tokens'][:7]]
    assert chosen == sorted(set(chosen)) and chosen[-1] > 0.8 * len(rows)
    assert sum(batch['loss_weights'].sum() for batch in few) == few.num_targets
    assert EvalBatches(split, seq_len=L, batch_size=3, max_rows=10_000).num_rows == len(rows)


def test_eval_of_an_empty_split(tmp_path):
    store = make_store(tmp_path / 's', [5, 6])
    with pytest.raises(InputError, match='validation split of .* holdout_share'):
        EvalBatches(store.validation, seq_len=L, batch_size=B)
    with pytest.raises(InputError, match='max_rows=0'):
        EvalBatches(store.train, seq_len=L, batch_size=B, max_rows=0)


def test_bad_settings(stores):
    with pytest.raises(InputError, match='batch_size=4 does not divide over 3 processes'):
        make_data(stores, process_count=3)
    with pytest.raises(InputError, match='process_index=2'):
        make_data(stores, process_index=2, process_count=2)
    with pytest.raises(InputError, match='component b has weight 0'):
        make_data(stores, (1.0, 0))
    with pytest.raises(InputError, match='no component'):
        PackedData([], seq_len=L, batch_size=B, seed=0)
    with pytest.raises(InputError, match='distinct names'):
        PackedData([('a', stores['a'].train, 1.0)] * 2, seq_len=L, batch_size=B, seed=0)
    other = dataclasses.replace(stores['b'].train, tokenizer_fingerprint='other')
    with pytest.raises(InputError, match='different tokenizers'):
        PackedData([('a', stores['a'].train, 1.0), ('b', other, 1.0)], seq_len=L, batch_size=B,
                   seed=0)
    without = dataclasses.replace(stores['b'].train, special={})
    with pytest.raises(InputError, match='no special tokens'):
        PackedData([('b', without, 1.0)], seq_len=L, batch_size=B, seed=0, infill=SPANS)


def test_too_little_data(stores):
    tokens = stores['a'].train.num_tokens
    rows = make_data(stores, seq_len=500, batch_size=1).plans['a'].num_rows
    with pytest.raises(InputError, match=rf'{tokens} tokens, which fill {rows} rows of '
                                         rf'seq_len=500, expected at least 64 .*batch_size=64'):
        make_data(stores, seq_len=500, batch_size=64)
    make_data(stores, (0.5, 0.5), seq_len=500, batch_size=2)


def test_a_single_row_repeats(tmp_path):
    store = make_store(tmp_path / 's', [5, 9])
    data = PackedData([('s', store.train, 1.0)], seq_len=50, batch_size=1, seed=0)
    same(data(0), data(3))
    assert data.epochs(4) == {'s': 4.0}


@pytest.mark.parametrize('infill', [InfillConfig(), SPM_AND_PSM])
def test_with_the_real_tokenizer(tmp_path, infill):
    rng = np.random.default_rng(0)
    texts = [f'{random_text(rng, 30)} naïve café no. {i} 東京 ' * 3 for i in range(40)]
    tokenizer = train_bpe(texts, vocab_size=400)
    write_store((Document(text, str(i), 'made up', 'CC0-1.0', f'line {i}')
                 for i, text in enumerate(texts)), tokenizer, tmp_path / 's', holdout_share=0.2,
                source_fingerprint='made up')
    store = TokenStore.open(tmp_path / 's')
    assert tokenizer.decode(store.train.document(3)) in texts
    assert store.train.special == tokenizer.special
    batch = epoch(PackedData([('s', store.train, 1.0)], seq_len=L, batch_size=B, seed=0,
                             infill=infill), 's')
    documents = [store.train.describe(i) for i in range(store.train.num_documents)]
    assert batch['num_bytes'].sum() == sum(len(texts[int(d['id'])].encode()) for d in documents)
    assert (np.isin(batch['tokens'], [tokenizer.special['<|fim_middle|>']]).any()
            == infill.active)
