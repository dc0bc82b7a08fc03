"""What was made from what, drawn as boxes in rows: a step stands below those that it needs."""

import dataclasses

from jaxllm.report import page

WIDTH = 640
_BOX, _ROW, _GAP = 54, 92, 16  # heights of a box and of a row, least space between boxes
_LETTER = 7.3


@dataclasses.dataclass(frozen=True)
class Node:
    """A box: name, a line about it, a link ('' = none), needs (names), main (the one of these that
    it goes on training, '' = none), done."""
    name: str
    about: str
    link: str
    needs: tuple
    main: str
    done: bool


def draw(nodes):
    """HTML of a figure; '' without nodes. Edges that follow from others are left out, unless the
    one below goes on training the one above."""
    if not nodes:
        return ''
    nodes = {node.name: node for node in nodes}
    rows = _rows(nodes)
    place = {}
    for level, names in enumerate(rows):
        step = WIDTH / len(names)
        for i, name in enumerate(names):
            place[name] = (step * (i + 0.5), level * _ROW, min(step - _GAP, 230))
    drawn = ''.join(_edge(place[need], place[node.name], need == node.main)
                    for node in nodes.values() for need in _kept(node, nodes))
    drawn += ''.join(_box(node, place[node.name]) for node in nodes.values())
    height = (len(rows) - 1) * _ROW + _BOX + 8
    return (f'<figure class="card lineage"><svg viewBox="0 -4 {WIDTH} {height}" role="img" '
            f'aria-label="What was made from what">{drawn}</svg></figure>')


def _rows(nodes):
    """Names by level: one more than the deepest that it needs."""
    level = {}

    def depth(name):
        if name not in level:
            level[name] = max((depth(need) + 1 for need in nodes[name].needs), default=0)
        return level[name]
    for name in nodes:
        depth(name)
    return [[name for name in nodes if level[name] == i] for i in range(max(level.values()) + 1)]


def _kept(node, nodes):
    above = {need: _ancestors(need, nodes) for need in node.needs}
    return [need for need in node.needs if need == node.main
            or not any(need in above[other] for other in node.needs if other != need)]


def _ancestors(name, nodes):
    found = set(nodes[name].needs)
    for need in nodes[name].needs:
        found |= _ancestors(need, nodes)
    return found


def _edge(start, end, main):
    (x0, y0, _), (x1, y1, _) = start, end
    y0 += _BOX
    middle = (y0 + y1) / 2
    style = 'main' if main else 'minor'
    return (f'<path class="edge {style}" d="M{x0:.0f} {y0}C{x0:.0f} {middle:.0f} {x1:.0f} '
            f'{middle:.0f} {x1:.0f} {y1 - 5}"/><path class="edge-head {style}" '
            f'd="M{x1 - 4:.0f} {y1 - 7}h8l-4 7z"/>')


def _box(node, place):
    x, y, width = place
    letters = int((width - 10) / _LETTER * 1.12)
    about = node.about if len(node.about) <= letters else f'{node.about[:letters - 1]}…'
    drawn = (f'<rect class="box{"" if node.done else " undone"}" x="{x - width / 2:.0f}" y="{y}" '
             f'width="{width:.0f}" height="{_BOX}" rx="8"/>'
             f'<text class="name" x="{x:.0f}" y="{y + 23}" text-anchor="middle">'
             f'{page.escape(node.name)}</text>'
             f'<text class="small" x="{x:.0f}" y="{y + 42}" text-anchor="middle">'
             f'{page.escape(about)}<title>{page.escape(node.about)}</title></text>')
    return f'<a href="{page.escape(node.link)}">{drawn}</a>' if node.link else drawn
