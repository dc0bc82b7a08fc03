"""Continuous refill: rows that are done make room for the prompts that wait.

    while rows are being written:
        write tokens until enough rows are done          (one compiled loop, no host in it)
        store those rows; feed the next prompts into their slots
        when no prompt waits and half of the slots are free, go on with half of them

All shapes are static: B slots, prompts fed `group` at a time in few lengths, B halved at most
_HALVINGS times. Tokens are those of the other ways to write them, since a row's randomness depends
on its id and the number of its tokens alone. Like continuous batching of servers (Yu 2022, Orca),
but the host decides only when enough slots are free and not after every token.
"""

import collections

import numpy as np

from jaxllm.decode import loop
from jaxllm.decode.batch import CHUNK, Runner, push, row_result
from jaxllm.decode.text import TextTail
from jaxllm.sharding import batch_ways

_SHARE = 4     # one out of so many slots is free when prompts are fed
_HALVINGS = 3  # of the batch at the end
_NO_LIMIT = 2**31 - 1


class Slots(Runner):
    """Rows on their way whose places are taken by others, or given up."""

    def __init__(self, request, prompts, row_ids, longest):
        super().__init__(request, prompts, row_ids, longest)
        ways = batch_ways(self._mesh)
        self.group = max(ways, self.size // _SHARE // ways * ways)
        sizes = [self.size >> i for i in range(_HALVINGS + 1)]
        self.sizes = [size for i, size in enumerate(sizes)
                      if size % ways == 0 and size << i == self.size]

    def enough(self, waiting):
        """How many slots have to be free before the host has something to do."""
        if waiting:
            return min(self.group, waiting)
        return self.size - max((size for size in self.sizes if size < self.size), default=0)

    def feed(self, prompts, row_ids, slots):
        """Puts at most `group` new rows into slots."""
        L = self._length(max(map(len, prompts)))
        new = self._start(self._on_devices(prompts, row_ids, self.group, L),
                          self._plan._replace(cache_length=L))
        slots_R = np.full((self.group,), self.size, np.int32)
        slots_R[:len(slots)] = slots
        self._state = loop.insert(self._state, new, slots_R)

    def shrink(self, slots, size):
        """Keeps `size` rows, those of `slots` first."""
        others = [slot for slot in range(self.size) if slot not in slots]
        slots_R = np.array((slots + others)[:size], np.int32)
        self._state = loop.keep(self._state, slots_R)
        self.finish(list(range(len(slots), size)))
        self.size = size


class Row:
    """What is known on the host of a row being written."""

    def __init__(self, index, request):
        self.index, self.tail, self.read = index, TextTail(request.stop_strings), 0


def generate_refilled(request, prompts, row_ids, batch_size):
    """Rows as of `generate_batch`, but of any number of prompts: ([row result], steps)."""
    # The longest first: prompts that are fed together have similar lengths.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    first, waiting = order[:batch_size], collections.deque(order[batch_size:])
    slots = Slots(request, [prompts[i] for i in first], [row_ids[i] for i in first],
                  len(prompts[order[0]]))
    taken = {slot: Row(i, request) for slot, i in enumerate(first)}
    results, step = {}, 1
    while taken:
        slots.advance(step + CHUNK if request.stop_strings else _NO_LIMIT,
                      slots.enough(len(waiting)))
        step, done_B, counts_B, out = slots.read()
        stopped = []
        for slot, row in list(taken.items()):
            row.read = push(request, row.tail, out['tokens'][slot], row.read, counts_B[slot])
            if done_B[slot] or row.tail.stopped:
                results[row.index] = row_result(
                    request, row.tail, {name: x[slot, :row.read].copy() for name, x in out.items()})
                del taken[slot]
                stopped += [] if done_B[slot] else [slot]
        if stopped:
            slots.finish(stopped)
        free = [slot for slot in range(slots.size) if slot not in taken]
        while waiting and len(free) >= min(slots.group, len(waiting)):
            new = [waiting.popleft() for _ in range(min(slots.group, len(waiting)))]
            places, free = free[:len(new)], free[len(new):]
            slots.feed([prompts[i] for i in new], [row_ids[i] for i in new], places)
            taken |= {slot: Row(i, request) for slot, i in zip(places, new, strict=True)}
        size = min(size for size in slots.sizes if size >= len(taken))
        if not waiting and taken and size < slots.size:
            slots.shrink(list(taken), size)
            taken = dict(enumerate(taken.values()))
    return [results[i] for i in range(len(prompts))], int(step)
