"""What the filters removed from the text of a run, with examples: a section of its report."""

from jaxllm.report import page

_NAMES = {'exact': 'exact copies', 'near': 'near copies', 'quality': 'broken text', 'spam': 'spam',
          'unsafe': 'unsafe text'}
_CHARACTERS = 240


def removed(reports):
    """HTML of a run's data/cleaning.json, {source: report}; '' without one."""
    if not reports:
        return ''
    return page.table([_row(source, report) for source, report in reports.items()]) + ''.join(
        _examples(source, step, report) for source, report in reports.items()
        for step in report['dropped'])


def _row(source, report):
    dropped = {_NAMES.get(step, step): sum(reasons.values())
               for step, reasons in report['dropped'].items()}
    gone = 1 - report['characters_kept'] / max(report['characters_read'], 1)
    return {'source': source, 'documents read': report['read'], 'kept': report['kept'],
            'text removed': f'{gone:.1%}', **dict.fromkeys(_NAMES.values(), 0), **dropped}


def _examples(source, step, report):
    """One filter of one source, folded: how often for which reason, and some of what it removed."""
    reasons = report['dropped'][step]
    shown = ''.join(
        f'<div class="try"><div class="step num">{page.escape(example["why"])}</div>'
        f'<div class="text">{page.escape(_cut(example["text"]))}</div></div>'
        for example in report['examples'].get(step, ()))
    counts = page.show(reasons) if len(reasons) > 1 else page.show(sum(reasons.values()))
    return (f'<details class="card below"><summary>{page.escape(source)}, '
            f'{page.escape(_NAMES.get(step, step))}: {page.escape(counts)}</summary>'
            f'{shown}</details>')


def _cut(text):
    return text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + ' …'
