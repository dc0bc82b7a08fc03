"""Speed and memory of fine-tuning against TRL + PEFT, and of decoding against Transformers.

    pip install -e '.[bench]' && python experiments/benchmarks/finetune_speed.py
    python experiments/benchmarks/finetune_speed.py --what=lora --what=decode-1 --rounds=5

The shapes of SmolLM2-135M with random weights, float32. `lora` is rank 16 on all linear layers,
`full` trains all weights: 4 rows of 128 random tokens, the second half of each is learned; a whole
step with clipping and AdamW. `decode-1` and `decode-16` write 48 tokens behind prompts of 32,
greedily. Each side is a process of its own that takes turns with the other, round by round; figures
are medians over rounds, and the ratio is taken round by round. Of TRL, what its SFTTrainer does for
a step is timed.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from jaxllm import huge_pages

B, L, RANK = 4, 128, 16
PROMPT, NEW = 32, 48
WHAT = ('lora', 'full', 'decode-1', 'decode-16')
SHAPE = dict(vocab_size=49152, d_model=576, num_layers=30, d_ff=1536, max_seq_len=8192)


def tokens():
    import numpy as np
    return np.random.default_rng(0).integers(3, SHAPE['vocab_size'], (B, L + 1))


def jaxllm_model():
    import jax

    from jaxllm.models import families, transformer
    from jaxllm.models.config import model_config
    from jaxllm.sharding import make_mesh

    settings = families.base('tiny') | SHAPE
    settings['attention'] |= dict(num_heads=9, num_kv_heads=3, head_dim=64)
    model = model_config(settings)
    jax.set_mesh(make_mesh())
    return model, jax.jit(lambda: transformer.init(jax.random.key(0), model))()


def jaxllm_train(what):
    """Returns step() that trains once and waits."""
    import jax
    import numpy as np

    from jaxllm.models import lora
    from jaxllm.objectives.base import assembled
    from jaxllm.objectives.lm import lm
    from jaxllm.train import optim
    from jaxllm.train.state import create
    from jaxllm.train.step import GuardConfig, guard_state, make_train_step

    model, params = jaxllm_model()
    objective, frozen, trained = lm(model), {}, params
    if what == 'lora':
        adapter = lora.LoraConfig(rank=RANK, alpha=32.0, targets=('*',), rslora=False, dora=False,
                                  train_embeddings=False, base='float32')
        frozen = {'base': params}
        trained = jax.jit(lambda x: lora.init_adapter(jax.random.key(0), x, adapter))(params)
        objective = assembled(objective, lambda t, f: lora.combine(f['base'], t, adapter))
    config = optim.OptimConfig(
        name='adamw', lr=1e-4, schedule='constant', warmup_steps=0, decay_share=0.0,
        final_lr_share=1.0, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.0, clip_norm=1.0,
        ema_decay=0.0, muon_momentum=0.95)
    optimizer = optim.make_optimizer(config, trained)
    guard = GuardConfig(spike_factor=10.0, history=50, max_skips_in_row=10)
    state = create(trained, optimizer, ema=False, aux={'guard': guard_state(guard)})
    step = jax.jit(make_train_step(objective, optimizer, optim.schedule(config, 10**6), seed=0,
                                   clip_norm=1.0, guard=guard), donate_argnums=0)
    tokens_BL = tokens()
    weights_BL = np.tile(np.arange(L) >= L // 2 - 1, (B, 1)).astype(np.float32)
    batch = jax.device_put({
        'tokens': tokens_BL[:, :-1].astype(np.int32), 'targets': tokens_BL[:, 1:].astype(np.int32),
        'loss_weights': weights_BL, 'segment_ids': np.ones((B, L), np.int32),
        'positions': np.tile(np.arange(L, dtype=np.int32), (B, 1)),
        'num_bytes': np.ones(B, np.float32)})

    def run():
        nonlocal state
        state, metrics = step(state, frozen, batch)
        return float(metrics['loss'])
    return run


def jaxllm_decode(rows):
    from jaxllm import decode
    model, params = jaxllm_model()
    prompts = tokens()[:1, :PROMPT].tolist() * rows
    sampling = decode.SamplingConfig(max_new_tokens=NEW, temperature=0.0)
    return lambda: decode.generate(params, model, prompts, sampling)


def torch_model():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=SHAPE['vocab_size'], hidden_size=SHAPE['d_model'],
        intermediate_size=SHAPE['d_ff'], num_hidden_layers=SHAPE['num_layers'],
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        max_position_embeddings=SHAPE['max_seq_len'], attn_implementation='sdpa',
        bos_token_id=1, eos_token_id=2, pad_token_id=0))


def torch_decode(rows):
    import torch
    model = torch_model().eval()
    prompts = torch.tensor(tokens()[:1, :PROMPT].repeat(rows, 0))

    def run():
        with torch.no_grad():
            model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False,
                           max_new_tokens=NEW, min_new_tokens=NEW)
    return run


def trl_train(what):
    """Trains with SFTTrainer; a step for every line on standard input."""
    import tempfile

    import datasets
    import peft
    import transformers
    import trl
    from tokenizers import Tokenizer, models

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({'<pad>': 0, '<s>': 1, '</s>': 2}, '<pad>')),
        pad_token='<pad>', bos_token='<s>', eos_token='</s>')
    ids = tokens()[:, :L].tolist()
    row = {'input_ids': ids,
           'labels': [[-100] * (L // 2) + one[L // 2:] for one in ids]}
    data = datasets.Dataset.from_dict({key: value * 400 for key, value in row.items()})
    adapter = peft.LoraConfig(r=RANK, lora_alpha=32, target_modules='all-linear',
                              task_type='CAUSAL_LM') if what == 'lora' else None

    class Turns(transformers.TrainerCallback):
        """Waits for its turn before each step but the first, which warms up."""

        def on_step_begin(self, args, state, control, **_):
            if state.global_step:
                if not sys.stdin.readline():
                    control.should_training_stop = True
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            if state.global_step == 1:
                print('ready', flush=True)
            else:
                report(self.start)
    config = trl.SFTConfig(
        tempfile.mkdtemp(), per_device_train_batch_size=B, max_length=L, max_steps=1000,
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], save_strategy='no',
        logging_strategy='no', learning_rate=1e-4, max_grad_norm=1.0, disable_tqdm=True,
        dataset_kwargs={'skip_prepare_dataset': True}, remove_unused_columns=False,
        lr_scheduler_type='constant')
    trl.SFTTrainer(torch_model(), config, train_dataset=data, processing_class=tokenizer,
                   peft_config=adapter, callbacks=[Turns()]).train()


def report(start):
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([time.perf_counter() - start, peak_kib * 1024]), flush=True)


def work(side, what):
    """A worker: one warm-up, then one piece of work for every line on standard input."""
    if side == 'theirs' and not what.startswith('decode'):
        trl_train(what)
        return
    if side == 'ours':
        huge_pages.restart()  # as the commands do
    rows = int(what.partition('-')[2] or 0)
    if side == 'theirs':
        run = torch_decode(rows)
    else:
        run = jaxllm_decode(rows) if rows else jaxllm_train(what)
    run()
    print('ready', flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        report(start)


def compare(what, rounds):
    """Alternates both sides for `rounds` rounds; returns a table row."""
    workers = {side: subprocess.Popen(
        [sys.executable, __file__, '--worker', side, '--what', what], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE) for side in ('ours', 'theirs')}
    for worker in workers.values():
        while worker.stdout.readline().strip() != 'ready':
            if worker.poll() is not None:
                raise SystemExit(f'a worker of {what} ended with code {worker.returncode}')
    seconds, memory = {side: [] for side in workers}, {}
    for _ in range(rounds):
        for side, worker in workers.items():
            print('step', file=worker.stdin, flush=True)
            took, memory[side] = json.loads(worker.stdout.readline())
            seconds[side].append(took)
    for worker in workers.values():
        worker.kill()
        worker.wait()
    rows = int(what.partition('-')[2] or 0)
    count = rows * NEW if rows else B * L
    rate = {side: count / statistics.median(s) for side, s in seconds.items()}
    ratio = statistics.median(t / o for t, o in zip(seconds['theirs'], seconds['ours'],
                                                    strict=True))
    return (f'{what:<12} {rate["ours"]:>9,.1f} {rate["theirs"]:>9,.1f} {ratio:>7.2f} '
            f'{memory["ours"] / 2**20:>9,.0f} {memory["theirs"] / 2**20:>9,.0f} '
            f'{memory["ours"] / memory["theirs"]:>7.2f}')


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7, help='at least 3')
    parser.add_argument('--worker', choices=('ours', 'theirs'))
    parser.add_argument('--what', choices=WHAT, action='append')
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.what[0])
        return
    print(f'{"":<12} {"tokens per second":^27} {"peak MiB":^27}')
    print(f'{"":<12} {"jaxllm":>9} {"theirs":>9} {"ratio":>7} {"jaxllm":>9} {"theirs":>9} '
          f'{"ratio":>7}')
    for what in args.what or WHAT:
        print(compare(what, max(args.rounds, 3)), flush=True)


if __name__ == '__main__':
    main()
