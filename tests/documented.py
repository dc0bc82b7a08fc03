"""What README.md and --help tell people to type: commands and files, to be checked."""

import argparse
import pathlib
import re
import shlex

from jaxllm import main

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')
_FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def readme_files():
    """{path: source} of the Python files that README.md lets its readers write."""
    sources = [text for language, text in _FENCE.findall(README) if language == 'python']
    return {source.splitlines()[0].removeprefix('# '): source for source in sources}


def readme_commands():
    """Every command of README.md that begins with jaxllm, as lists of arguments."""
    fenced = ''.join(text for language, text in _FENCE.findall(README) if not language)
    inline = re.findall(r'`(jaxllm [^`]*)`', _FENCE.sub('', README))
    return commands(fenced + '\n'.join(inline))


def help_pages():
    """{'run': what `jaxllm run --help` says, ...}; '' is `jaxllm --help`."""
    return {' '.join(words): parser.format_help() for words, parser in _parsers(main._parser())}


def _parsers(parser, *words):
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from _parsers(child, *words, name)


def commands(text):
    """[[argument, ...]] behind `jaxllm` in lines of a shell: also behind &&, assignments and in
    $(...), which stands for a path."""
    found = []
    for line in text.replace('\\\n', ' ').splitlines():
        inner = re.findall(r'\$\((jaxllm [^)]*)\)', line)
        for part in (*re.sub(r'\$\([^)]*\)', 'path', line).split('&&'), *inner):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r'\w+=.*', words[0]):
                words.pop(0)
            if words and words[0] == 'jaxllm':
                found.append(words[1:])
    return found
