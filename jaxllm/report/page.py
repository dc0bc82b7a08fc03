"""The skeleton of a page, and the small pieces of HTML and of text that sections are made of."""

import dataclasses
import html
import json
import os
import pathlib

STYLE = pathlib.Path(__file__).with_name('style.css')


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page. One with an empty body is left out."""
    title: str
    body: str  # HTML

    @property
    def anchor(self):
        return slug(self.title)


def escape(text):
    """Text as HTML."""
    return html.escape(str(text), quote=True)


def slug(text):
    """A name that is safe as an id."""
    return ''.join(c if c.isascii() and c.isalnum() else '-' for c in text.lower()).strip('-')


def page(title, subtitle, sections, footer=''):
    """One self-contained HTML page.

    Args:
        title: text.
        subtitle: text.
        sections: Sections, in order.
        footer: text.

    Returns:
        The page as a string. It refers to no other file.
    """
    sections = [section for section in sections if section.body]
    links = ''.join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections)
    bodies = '\n'.join(f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>\n{s.body}\n</section>'
                       for s in sections)
    return f'''<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{STYLE.read_text(encoding='utf-8')}</style>
</head>
<body>
<main>
<header>
<h1>{escape(title)}</h1>
<p>{escape(subtitle)}</p>
<nav>{links}</nav>
</header>
{bodies}
<footer>{escape(footer)}</footer>
</main>
</body>
</html>
'''


def write(path, text):
    """Replaces a page at once: someone may be looking at the old one. Returns its path."""
    partial = path.with_suffix('.html.tmp')
    partial.write_text(text, encoding='utf-8', errors='replace')
    os.replace(partial, path)
    return path


def tile(name, value, unit='', hint=''):
    """One headline number. All arguments are text."""
    unit = f' <small>{escape(unit)}</small>' if unit else ''
    hint = f'<div class="hint">{escape(hint)}</div>' if hint else ''
    return (f'<div class="card tile"><div class="name">{escape(name)}</div>'
            f'<div class="value num">{escape(value)}{unit}</div>{hint}</div>')


def table(rows):
    """A table of dicts: the columns are all keys, in order of appearance; numbers right-aligned."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    is_number = {key: all(_is_number(row[key]) for row in rows if row.get(key) is not None)
                 for key in columns}
    style = {key: ' class="num"' if is_number[key] else '' for key in columns}
    head = ''.join(f'<th{style[key]}>{escape(label(key))}</th>' for key in columns)
    body = ''.join('<tr>' + ''.join(f'<td{style[key]}>{escape(show(row.get(key)))}</td>'
                                    for key in columns) + '</tr>\n' for row in rows)
    return f'<div class="card wide"><table><tr>{head}</tr>\n{body}</table></div>'


def pairs(values):
    """A list of names and values from a flat dict."""
    items = ''.join(f'<dt>{escape(name)}</dt><dd><code>{escape(literal(value))}</code></dd>'
                    for name, value in values.items())
    return f'<dl class="pairs">{items}</dl>'


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def label(key):
    """'bytes_per_token' -> 'bytes per token'."""
    return str(key).replace('_', ' ')


def interval(found, digits=3):
    """'0.61 [0.52, 0.70]' of {'value', 'low', 'high'}; None where nothing was measured."""
    if found is None or found['value'] is None:
        return None
    if found['low'] is None:
        return f'{found["value"]:.{digits}f}'
    return (f'{found["value"]:.{digits}f} [{found["low"]:.{digits}f}, '
            f'{found["high"]:.{digits}f}]')


def show(value):
    """A value as text: thousands separated, floats to four digits, None as a dash."""
    if value is None:
        return '–'
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, int):
        return f'{value:,}'
    if isinstance(value, float):
        return f'{value:,.0f}' if 1000 <= abs(value) < 1e15 else f'{value:.4g}'
    if isinstance(value, dict):
        return ', '.join(f'{label(key)} {show(item)}' for key, item in value.items()) or '–'
    if isinstance(value, (list, tuple)):
        return ', '.join(show(item) for item in value) or '–'
    return str(value)


def literal(value):
    """A value as it is written: JSON, and strings as they are unless empty."""
    if isinstance(value, str) and value:
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def short(number):
    """A count to three digits: '950', '12.3k', '1.5M', '2.1B', '4T'."""
    for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'k')):
        if abs(number) >= size * 0.9995:
            return f'{number / size:.3g}{unit}'
    return f'{number:.3g}'


def size_of(number):
    """Bytes with a binary unit: '512 B', '1.5 GiB'."""
    for size, unit in ((2 ** 40, 'TiB'), (2 ** 30, 'GiB'), (2 ** 20, 'MiB'), (2 ** 10, 'KiB')):
        if number >= size:
            return f'{number / size:.3g} {unit}' if number < 1000 * size else \
                f'{number / size:,.0f} {unit}'
    return f'{number:.0f} B'


def flatten(tree, prefix=''):
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f'{prefix}{key}.'))
        else:
            flat[f'{prefix}{key}'] = value
    return flat
