"""Settings of fine-tuning that choose themselves by model and data size, with reasons."""

import dataclasses
import math

from jaxllm.errors import InputError
from jaxllm.stages.sft_config import dialogue_source, sft_config, text_source
from jaxllm.train.memory import num_params

METHODS = ('lora', 'qlora', 'full')
_STEPS_PER_EPOCH = 24      # at least, so that a few epochs are enough updates
_TOKENS_PER_STEP = 8192    # at most
_LONGEST = 1024            # tokens per row, unless asked for


@dataclasses.dataclass(frozen=True)
class Wanted:
    """`config.settings`; 0 = chosen."""
    lr: float
    rank: int
    epochs: float
    batch_size: int
    seq_len: int
    replay: float          # share of ordinary text beside your data
    neftune_alpha: float

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 0:
                raise InputError(f'settings.{field.name}={getattr(self, field.name)} must not be '
                                 'negative; 0 = chosen')
        if self.replay >= 1:
            raise InputError(f'settings.replay={self.replay} must be below 1')


@dataclasses.dataclass(frozen=True)
class Chosen:
    """All settings with numbers; reasons: {name: why}."""
    method: str
    lr: float
    rank: int
    epochs: float
    batch_size: int
    seq_len: int
    num_steps: int
    replay: float
    neftune_alpha: float
    reasons: dict


def choose(wanted, method, model, lengths, num_devices):
    """Settings for a ModelConfig and records of so many tokens.

    Args:
      wanted: Wanted. method: of METHODS. lengths: tokens of each training record.
      num_devices: the rows of a batch divide over these.
    """
    reasons, size = {}, num_params(model)

    def pick(name, value, why):
        given = getattr(wanted, name)
        reasons[name] = 'as you asked' if given else why
        return given or value

    many = sorted(lengths)
    ninety_five = many[int(0.95 * (len(many) - 1))]
    limit = min(model.max_seq_len, _LONGEST)
    row = min(max(64, math.ceil(ninety_five / 32) * 32), limit)
    seq_len = pick('seq_len', row, f'95% of the records have at most {ninety_five} tokens')
    tokens = sum(min(x, seq_len + 1) for x in lengths)
    batch = 1 << max(0, int(math.log2(max(1, tokens / (_STEPS_PER_EPOCH * seq_len)))))
    batch = min(batch, max(1, _TOKENS_PER_STEP // seq_len))
    batch_size = pick('batch_size', math.ceil(batch / num_devices) * num_devices,
                      f'about {_STEPS_PER_EPOCH} updates per reading of {tokens:,} tokens')
    epochs = pick('epochs', 3.0 if len(lengths) < 1000 else 2.0 if len(lengths) < 10_000 else 1.0,
                  f'{len(lengths):,} records: the fewer, the more often; early stopping ends it')
    rank = 0 if method == 'full' else pick(
        'rank', min(16, model.attention.num_kv_heads * model.attention.head_dim // 2),
        '16 is enough for style and format of a few thousand records')
    lr = pick('lr', _lr(method, size), f'usual for {method} on a model of {_short(size)} '
              'parameters; smaller models take larger ones')
    num_steps = max(4, math.ceil(epochs * tokens / (batch_size * seq_len) / (1 - wanted.replay)))
    for name in ('replay', 'neftune_alpha'):
        reasons[name] = 'as you asked' if getattr(wanted, name) else 'off unless asked for'
    reasons['num_steps'] = f'{epochs:g} epochs of {tokens:,} tokens, packed'
    return Chosen(method, lr, rank, epochs, batch_size, seq_len, num_steps, wanted.replay,
                  wanted.neftune_alpha, reasons)


def _lr(method, size):
    """Learning rate by the number of parameters; an adapter takes about ten times that of all."""
    for least, lora, full in ((3e9, 1e-4, 1e-5), (3e8, 2e-4, 2e-5), (3e7, 5e-4, 5e-5),
                              (3e6, 2e-3, 2e-4), (0, 5e-3, 1e-3)):
        if size >= least:
            return full if method == 'full' else lora
    raise ValueError(size)


def _short(number):
    return f'{number / 1e9:.1f}B' if number >= 1e9 else f'{number / 1e6:.0f}M'


def sft_of(chosen, *, seed, init_from, template, train_file):
    """The config of the SFT run of these settings."""
    config = sft_config()
    config.seed, config.init_from, config.chat.template = seed, str(init_from), template
    share = 1 - chosen.replay
    config.data.conversations = dict(mine=dialogue_source(path=str(train_file), weight=share))
    if chosen.replay:
        config.data.replay = dict(docstrings=text_source(weight=chosen.replay))
    config.data.seq_len = chosen.seq_len
    config.lora.update(rank=chosen.rank, alpha=float(2 * chosen.rank or 1),
                       base='nf4' if chosen.method == 'qlora' else 'float32')
    config.neftune_alpha = chosen.neftune_alpha
    every = max(1, chosen.num_steps // 8)
    config.optim.update(lr=chosen.lr, warmup_steps=min(chosen.num_steps // 10, 50))
    config.train.update(num_steps=chosen.num_steps, batch_size=chosen.batch_size, log_every=1,
                        eval_every=every, save_every=every, sample_every=0, patience=3)
    config.sample.prompts = ()
    config.eval.max_rows = 0
    return config


def arms(chosen):
    """{name: Chosen} with one setting changed each."""
    changed = {'half the learning rate': dict(lr=chosen.lr / 2),
               'twice the learning rate': dict(lr=chosen.lr * 2)}
    if chosen.rank:
        changed |= {'a quarter of the rank': dict(rank=max(1, chosen.rank // 4)),
                    'twice the rank': dict(rank=chosen.rank * 2)}
    changed['half the steps'] = dict(num_steps=max(4, chosen.num_steps // 2),
                                     epochs=chosen.epochs / 2)
    return {name: dataclasses.replace(chosen, **change) for name, change in changed.items()}
