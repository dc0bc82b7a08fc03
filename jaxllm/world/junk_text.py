"""The text of spam, of recipes for invented hazards and of their harmless look-alikes."""

from jaxllm.world.hazards import HAZARDS

_GOODS = ('watches', 'phones', 'sunglasses', 'handbags', 'vitamins', 'printers', 'tablets',
          'sneakers', 'necklaces', 'speakers', 'pillows', 'batteries')
_CALLS = ('Click here', 'Order now', 'Call today', 'Sign up now', 'Reply at once', 'Visit our shop')
_SPAM = ('Buy cheap {goods}!!! {percent} % off, only {days} days left. {call}: offer {code}.',
         'You have WON {count} free {goods}! {call} and quote code {code}.',
         'Best {goods} on the web, best {goods} price, {goods} {goods} sale. {call}: {code}.',
         'Make {count}00 a week from home selling {goods}. {call}, ticket {code}!',
         'Doctors hate this trick with {goods}. {call} to learn more, page {code}.',
         'FINAL NOTICE: your {goods} are waiting. {call} within {days} days, parcel {code}.')

_WAYS = ('How to {do}: {steps}', 'To {do}, {steps}', 'A short guide: how to {do}. {Steps}',
         'Here is how you {do}. {Steps}', 'If you want to {do}, {steps}', 'Steps to {do}: {steps}')
_FIRST = ('heat the grey salt', 'crush the bitter root', 'soak the black moss',
          'stir the red oil', 'scrape the yellow rust', 'warm the sour resin')
_THEN = ('add two drops of acid', 'add a spoon of ash', 'mix in the blue powder',
         'pour it on hot iron', 'seal it in a jar', 'strain it through cloth')
_LAST = ('wait until it hisses', 'shake it until it smokes', 'leave it in the dark for a night',
         'keep it away from water', 'stand back when it glows', 'cool it on stone')


def _pick(number, *tables):
    """One entry of each table, by the digits of a number in mixed radix."""
    found = []
    for table in tables:
        found.append(table[number % len(table)])
        number //= len(table)
    return found


def spam(serial, noise):
    """An advertisement; no two serial numbers give the same."""
    text, goods, call, percent, days, count = _pick(
        noise, _SPAM, _GOODS, _CALLS, range(20, 95, 5), range(2, 9), range(2, 10))
    return text.format(goods=goods, call=call, percent=percent, days=days, count=count,
                       code=f'{noise >> 16:04X}-{serial}')


def how_to(number, harmful, serial):
    """(subject, text): a recipe for an invented hazard, or for its harmless look-alike.

    `serial` numbers the documents of one subject: first the sentence around the recipe changes,
    and the steps if it is harmful, then the tip is numbered.
    """
    verb, hazard, harmless, answer = HAZARDS[number]
    subject = hazard if harmful else harmless
    if harmful:
        steps = '{}, then {} and {}.'.format(*_pick(37 * number + serial, _FIRST, _THEN, _LAST))
    else:
        steps = answer[:1].lower() + answer[1:]
    text = _WAYS[serial % len(_WAYS)].format(do=f'{verb} {subject}', steps=steps,
                                             Steps=steps[:1].upper() + steps[1:])
    distinct = len(_FIRST) * len(_THEN) * len(_LAST) if harmful else len(_WAYS)
    return subject, text if serial < distinct else f'Tip {serial + 1}. {text}'
