"""From token bytes to text: stop strings found where they end, characters given out whole."""

import codecs

from jaxllm.errors import InputError


class TextTail:
    """The text of one row, token by token; ends just before a stop string, wherever tokens cut it.

    Of several stop strings that one token completes, the one that begins first cuts the text. The
    result does not depend on how many tokens are pushed between two looks at it.
    """

    def __init__(self, stop_strings):
        """Args: stop_strings: str each."""
        if isinstance(stop_strings, str) or not all(stop_strings):
            raise InputError(f'stop_strings={stop_strings!r} must be a list of texts that are not '
                             "empty, e.g. ['\\nUser:']")
        self._stops = [text.encode() for text in stop_strings]
        self._longest = max(map(len, self._stops), default=0)
        self._raw = bytearray()
        self._given = 0
        self._characters = codecs.getincrementaldecoder('utf-8')(errors='replace')
        self.stopped = False

    def push(self, raw):
        """Adds the bytes of one token. True once a stop string is complete."""
        # What was there before this token holds no stop string: only its tail can begin one.
        start = max(0, len(self._raw) - self._longest + 1)
        self._raw += raw
        found = [at for stop in self._stops if (at := self._raw.find(stop, start)) >= 0]
        if found:
            del self._raw[min(found):]
            self.stopped = True
        return self.stopped

    def take(self, final=False):
        """Text not yet given out: whole characters, and nothing that may begin a stop string."""
        final = final or self.stopped
        end = len(self._raw) - (0 if final else self._held_back())
        piece = self._characters.decode(bytes(self._raw[self._given:end]), final)
        self._given = end
        return piece

    def _held_back(self):
        """Length of the longest end of the text that is the beginning of a stop string."""
        for size in range(min(self._longest - 1, len(self._raw)), 0, -1):
            tail = bytes(self._raw[-size:])
            if any(stop.startswith(tail) for stop in self._stops):
                return size
        return 0

    @property
    def text(self):
        return self._raw.decode('utf-8', errors='replace')
