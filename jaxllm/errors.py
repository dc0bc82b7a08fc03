"""The exceptions that `jaxllm` turns into one clear line and an exit code.

Every message says what is wrong, what was got, what was expected and how to fix it.
"""


class InputError(ValueError):
    """Bad input from the user, found before anything is compiled. Exit code 2."""


class GuardStop(RuntimeError):
    """A guard stopped a run that can be resumed. Exit code 3."""


class RunError(RuntimeError):
    """The surroundings failed (a full disk); what was saved is intact. Exit code 1."""
