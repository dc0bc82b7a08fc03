"""How finely a tokenizer cuts each source: tokens per word and bytes per token."""

from collections import defaultdict
from collections.abc import Iterable

from jaxllm.data.records import Document
from jaxllm.data.tokenizer import Tokenizer

BATCH = 256
TOTAL = 'all'


def fertility(documents: Iterable[Document], tokenizer: Tokenizer) -> list[dict]:
    """Rows by source, sorted, and a last one for all; ready for JSON.

    Fertility is tokens per word, a word being what white space separates.

    Returns:
        [{source, documents, words, bytes, tokens, tokens_per_word, bytes_per_token}], counts as
        int; a ratio over nothing is 0.0.
    Ref: Rust et al. 2021, 'How good is your tokenizer?', section 4.
    """
    counts = defaultdict(lambda: [0, 0, 0, 0])
    batch = []

    def flush():
        for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]),
                                 strict=True):
            words, size = len(document.text.split()), len(document.text.encode('utf-8'))
            for i, count in enumerate((1, words, size, len(ids))):
                counts[document.source][i] += count
        batch.clear()

    for document in documents:
        batch.append(document)
        if len(batch) == BATCH:
            flush()
    flush()
    rows = [_row(source, *counts[source]) for source in sorted(counts)]
    total = [sum(column) for column in zip(*counts.values(), strict=True)] or [0, 0, 0, 0]
    return [*rows, _row(TOTAL, *total)]


def _row(source: str, documents: int, words: int, size: int, tokens: int) -> dict:
    return {'source': source, 'documents': documents, 'words': words, 'bytes': size,
            'tokens': tokens, 'tokens_per_word': tokens / words if words else 0.0,
            'bytes_per_token': size / tokens if tokens else 0.0}


def table(rows: list[dict]) -> str:
    """The rows of `fertility` as aligned text."""
    header = ('source', 'documents', 'words', 'bytes', 'tokens', 'tokens/word', 'bytes/token')
    cells = [header, *((row['source'], *(f'{row[key]:,}' for key in header[1:5]),
                        f'{row["tokens_per_word"]:.3f}', f'{row["bytes_per_token"]:.3f}')
                       for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return '\n'.join('  '.join([line[0].ljust(widths[0]),
                                *(cell.rjust(width) for cell, width
                                  in zip(line[1:], widths[1:], strict=True))])
                     for line in cells)
