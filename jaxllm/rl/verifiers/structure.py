"""A verifier of JSON by a schema."""

import dataclasses
import json
import re

import jsonschema
import referencing

from jaxllm.errors import InputError
from jaxllm.rl.verifiers.fields import field_of

_FENCED = re.compile(r'```(?:json)?[ \t]*\n(.*?)```', re.DOTALL)
_DRAFT = jsonschema.Draft202012Validator


@dataclasses.dataclass(frozen=True)
class JsonSchema:
    """schema: a JSON schema (draft 2020-12) as a dict or as JSON text, or `field`, the record's
    field with one; exactly one of the two. {} as text, '{}', lets any JSON pass.
    fenced: JSON in a ``` block counts too, if there is one block.
    """
    schema: dict | str = ''
    field: str = ''
    fenced: bool = True

    def __post_init__(self):
        if bool(self.schema) == bool(self.field):
            raise InputError('json_schema needs a schema or the field with one, and not both; got '
                             f'schema={self.schema!r}, field={self.field!r}')
        if self.schema:
            validator(self.schema)


def validator(schema):
    """The validator of a schema. Raises InputError: it is none, or refers to another document."""
    try:
        schema = json.loads(schema) if isinstance(schema, str) else json.loads(json.dumps(schema))
        _DRAFT.check_schema(schema)
    except (ValueError, TypeError, jsonschema.SchemaError) as error:
        reason = getattr(error, 'message', str(error))
        raise InputError(f'{str(schema)[:200]!r} is no JSON schema: {reason}') from error
    for reference in _references(schema):
        if not reference.startswith('#'):
            raise InputError(f'the JSON schema refers to {reference!r}; nothing is fetched, so '
                             'references have to begin with #')
    # An empty registry, so that nothing is looked up in the network.
    return _DRAFT(schema, registry=referencing.Registry())


def _references(schema):
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key in ('$ref', '$dynamicRef') and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def json_schema(records, settings: JsonSchema):
    """1 where the response is one JSON value that the schema allows, else 0.

    White space around it is allowed, text is not. NaN, Infinity and a key that occurs twice in an
    object are no JSON.
    """
    shared = validator(settings.schema) if settings.schema else None
    return [float(_is_valid(record.response, shared or validator(field_of(record, settings.field)),
                            settings.fenced)) for record in records]


def _is_valid(text, schema, fenced):
    blocks = _FENCED.findall(text) if fenced else []
    try:
        value = json.loads(blocks[0] if len(blocks) == 1 else text, parse_constant=_refuse,
                           object_pairs_hook=_object)
        return schema.is_valid(value)
    except (ValueError, RecursionError):
        return False


def _refuse(name):
    raise ValueError(f'{name} is no JSON')


def _object(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError('a key occurs twice')
    return found
