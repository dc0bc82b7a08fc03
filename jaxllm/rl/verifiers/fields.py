"""What verifiers read from a record."""

from jaxllm.errors import InputError


def field_of(record, name):
    """record.fields[name]. Raises InputError naming the fields that there are."""
    if name not in record.fields:
        raise InputError(f'a record has no field {name!r}; its fields are '
                         f'{", ".join(sorted(record.fields)) or "none"}')
    return record.fields[name]


def answers_of(record, name):
    """The right answers of a record as texts: one, or any of a list of them.

    Raises InputError: no such field, or nothing in it: nobody could be right.
    """
    value = field_of(record, name)
    texts = [str(one) for one in (value if isinstance(value, (list, tuple)) else [value])
             if one is not None]
    if not any(text.strip() for text in texts):
        raise InputError(f'the field {name!r} of a record is empty; drop such prompts (where=) or '
                         'name another field')
    return [text for text in texts if text.strip()]
