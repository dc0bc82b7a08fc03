"""Verifiers: reward functions that check a response by a rule.

Each is f(records, settings) -> [float] of `jaxllm.rl.rewards.Answered` and a frozen dataclass, and
is named in a config as 'jaxllm.rl.verifiers.exact_match'. They look at each record alone.
"""

from jaxllm.rl.verifiers.code import UnitTests, unit_tests
from jaxllm.rl.verifiers.numbers import Number, number
from jaxllm.rl.verifiers.structure import JsonSchema, json_schema
from jaxllm.rl.verifiers.text import (ExactMatch, FollowsFormat, Length, Overlong, Regex,
                                      Repetition, exact_match, follows_format, length, overlong,
                                      regex, repetition, repetition_share)

__all__ = ['ExactMatch', 'FollowsFormat', 'JsonSchema', 'Length', 'Number', 'Overlong', 'Regex',
           'Repetition', 'UnitTests', 'exact_match', 'follows_format', 'json_schema', 'length',
           'number', 'overlong', 'regex', 'repetition', 'repetition_share', 'unit_tests']
