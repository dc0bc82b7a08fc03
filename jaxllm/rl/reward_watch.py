"""Runs `reward_worker` until the trainer is gone: python -m jaxllm.rl.reward_watch PID_OF_TRAINER.

The worker's imports take seconds, and the watch may not wait for them: only it is imported here.
"""

import os
import select
import signal
import sys

_TICK_MS = 500


def watch(trainer):
    """Kills this process and its group when the trainer is gone.

    It is gone when nobody holds the other end of stdin; but a process that the trainer forked may
    hold it for longer, so that the trainer's id is looked at as well.
    """
    poll = select.poll()
    poll.register(0, 0)
    while not poll.poll(_TICK_MS) and _exists(trainer):
        pass
    os.killpg(0, signal.SIGKILL)


def _exists(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def main():
    # A process of its own: a thread could not, where the function holds the interpreter's lock.
    if os.fork() == 0:
        os.close(1)     # else nobody would see the worker's end there
        watch(int(sys.argv[1]))
    from jaxllm.rl import reward_worker
    reward_worker.main()


if __name__ == '__main__':
    main()
