"""Personal and secret data in texts: found by pattern, and by check digit where there is one."""

import ipaddress
import re

_PATTERNS = {
    'EMAIL': re.compile(r'\b[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b'),
    'PHONE': re.compile(r'(?<![\w.])(?<!\d[ -])(?:\+\d{1,3}[ .-]?)?'
                        r'(?:\(\d{2,4}\)[ .-]?|\d{2,4}[ .-])'
                        r'\d{3,4}[ .-]\d{3,4}(?![\w-]| \d)'),
    'CARD': re.compile(r'(?<![\w.])\d(?:[ -]?\d){12,18}(?![\w.])'),
    'IBAN': re.compile(r'\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b'),
    'IP': re.compile(r'(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])'),
    'KEY': re.compile(r'\b(?:sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}|ghp_[A-Za-z0-9]{36}'
                      r'|xox[abp]-[A-Za-z0-9-]{10,})\b|-----BEGIN [A-Z ]*PRIVATE KEY-----'),
}
NAMES = {'EMAIL': 'e-mail address', 'PHONE': 'telephone number', 'CARD': 'credit card number',
         'IBAN': 'bank account number', 'IP': 'public IP address', 'KEY': 'secret key'}


def find(text):
    """[(kind, start, end)] of what looks personal or secret, without overlaps, in order."""
    found = []
    for kind, pattern in _PATTERNS.items():
        found += [(kind, *match.span()) for match in pattern.finditer(text)
                  if _VALID.get(kind, lambda text: True)(match[0])]
    found.sort(key=lambda hit: (hit[1], -hit[2]))
    kept, end = [], 0
    for hit in found:
        if hit[1] >= end:
            kept.append(hit)
            end = hit[2]
    return kept


def mask(text):
    """The text with '[EMAIL]' and the like in place of what `find` finds."""
    for kind, start, end in reversed(find(text)):
        text = f'{text[:start]}[{kind}]{text[end:]}'
    return text


def _luhn(text):
    """Luhn's check digit: every second digit from the right is doubled, the sum ends with 0."""
    digits = [int(c) for c in text if c.isdigit()]
    doubled = [d if i % 2 == 0 else sum(divmod(2 * d, 10)) for i, d in enumerate(digits[::-1])]
    return len(set(digits)) > 1 and sum(doubled) % 10 == 0


def _iban(text):
    """ISO 7064: letters as numbers, the first four characters last, remainder 1 modulo 97."""
    text = text.replace(' ', '')
    if not 15 <= len(text) <= 34:
        return False
    return int(''.join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def _public_ip(text):
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


_VALID = {'CARD': _luhn, 'IBAN': _iban, 'IP': _public_ip}
