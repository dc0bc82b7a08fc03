"""Renderings against Transformers, and what a template may do to a text that a person wrote."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.data import chat, marking, tokenizer
from jaxllm.errors import InputError

TEXT = ['The capital of France is Paris. What is it? It rains a lot here, every single day.',
        'Be brief. Hello there, how are you? I am fine, thanks. [INST] user assistant [/INST]'] * 4
TALK = ({'role': 'user', 'content': 'What is the capital of France?'},
        {'role': 'assistant', 'content': 'Paris it is.'},
        {'role': 'user', 'content': 'Hello there, how are you?'},
        {'role': 'assistant', 'content': 'I am fine, thanks.'})


@pytest.fixture(scope='module')
def bpe():
    return tokenizer.train_bpe(TEXT, 380)


@pytest.fixture(scope='module', params=['legacy', 'first', 'always', 'never'])
def pieces(request, tmp_path_factory):
    """A Llama-2-style tokenizer that puts a space before a text in one of the usual ways."""
    tok = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, fuse_unk=True,
                                                     unk_token='<unk>'))
    if request.param == 'legacy':
        tok.normalizer = tokenizers.normalizers.Sequence([
            tokenizers.normalizers.Prepend('\u2581'),
            tokenizers.normalizers.Replace(' ', '\u2581')])
    else:
        tok.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=request.param,
                                                                split=True)
    tok.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace('\u2581', ' '), tokenizers.decoders.ByteFallback(),
         tokenizers.decoders.Fuse()])
    words = [part for text in TEXT
             for part in (text.split() if request.param == 'legacy' else [text])]
    tok.train_from_iterator(words, tokenizers.trainers.BpeTrainer(
        vocab_size=500, show_progress=False,
        special_tokens=['<unk>', '<s>', '</s>', *(f'<0x{b:02X}>' for b in range(256))]))
    spec = json.loads(tok.to_str())
    spec['added_tokens'] = spec['added_tokens'][:3]  # bytes are tokens as others
    folder = tmp_path_factory.mktemp(request.param)
    (folder / 'tokenizer.json').write_text(json.dumps(spec))
    return tokenizer.load(folder)


def theirs(tok, template, messages, **options):
    transformers = pytest.importorskip('transformers')
    backend = tokenizers.Tokenizer.from_str(json.dumps(tok.spec))
    other = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=tok.bos,
                                                 eos_token=tok.eos)
    other.chat_template = chat.plain_source(template)
    return other.apply_chat_template(list(messages), tokenize=True, return_dict=False, **options)


@pytest.mark.parametrize('name', ['chatml', 'chatml_bos', 'smollm2', 'qwen2'])
def test_byte_level_ids_are_those_of_transformers(name, bpe):
    template = chat.load_template(name)
    for messages in (TALK, TALK[:2], ({'role': 'system', 'content': 'Be brief.'}, *TALK)):
        assert chat.render(template, messages, bpe).ids == theirs(bpe, template, messages)
    assert chat.render(template, TALK[:3], bpe, add_generation_prompt=True).ids == theirs(
        bpe, template, TALK[:3], add_generation_prompt=True)


@pytest.mark.parametrize('name', ['mistral', 'llama2'])
def test_sentencepiece_ids_are_those_of_transformers(name, pieces):
    template = chat.load_template(name)
    assert chat.render(template, TALK, pieces).ids == theirs(pieces, template, TALK)


def test_no_space_comes_into_the_middle(pieces):
    out = chat.render(chat.load_template('mistral'), TALK[:2], pieces)
    text = b''.join(pieces.token_bytes(i) for i in out.ids).decode()
    assert text.removeprefix(' ') == '[INST] What is the capital of France? [/INST]Paris it is.'


nasty = st.text(st.one_of(st.characters(codec='utf-8'), st.sampled_from(
    '\U000f0000\U000f0004\u202e\0 \n\t<|>🙂')), min_size=1, max_size=20).filter(str.strip)
spiced = st.builds(''.join, st.lists(st.one_of(nasty, st.sampled_from(
    ['<|im_end|>', '<|im_start|>assistant\n', '<|bos|>', '<|eos|>', '  ', '\n\n',
     '<<|eos|>|eos|>'])), min_size=1, max_size=4)).filter(str.strip)
# As they come with models: without marks.
FOREIGN = ("{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + "
           "m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
           "{{ '<|im_start|>assistant\n' }}{% endif %}")


@settings(max_examples=120, deadline=None)
@given(system=spiced, user=spiced, answer=spiced)
def test_prompts_are_prefixes_and_one_end_per_answer_is_learned(bpe, system, user, answer):
    messages = [{'role': 'system', 'content': system}, {'role': 'user', 'content': user},
                {'role': 'assistant', 'content': answer}, {'role': 'user', 'content': user},
                {'role': 'assistant', 'content': answer}]
    specials = set(bpe.special.values())
    for template in (chat.load_template('chatml_bos'), chat.load_template('question'),
                     chat.ChatTemplate('own', FOREIGN, derived=True)):
        out = chat.render(template, messages, bpe)
        for end in (2, 4):
            prompt = chat.render(template, messages[:end], bpe, add_generation_prompt=True).ids
            assert out.ids[:len(prompt)] == prompt
        assert out.ids.count(bpe.bos_id) == 1 and bpe.eos_id not in out.ids
        learned = [i for i, w in zip(out.ids, out.loss_weights, strict=True) if w]
        assert [i for i in learned if i in specials] == [bpe.special['<|im_end|>']] * 2
        said = b''.join(bpe.token_bytes(i) for i in learned).decode()
        space = ' ' if template.name == 'question' else ''
        assert said == 2 * f'{space}{answer}'


def test_private_characters_are_text_as_others(bpe):
    typed = ''.join(map(chr, range(0xF0000, 0xF000A)))
    messages = [{'role': 'user', 'content': typed}, {'role': 'assistant', 'content': f'a{typed}b'}]
    out = chat.render(chat.load_template('chatml'), messages, bpe)
    learned = [i for i, w in zip(out.ids, out.loss_weights, strict=True) if w]
    assert bpe.decode(learned, skip_special=False) == f'a{typed}b<|im_end|>'
    assert bpe.decode([i for i, role in zip(out.ids, out.roles, strict=True) if role == 'user']
                      ) == typed


def test_a_prompt_that_ends_with_a_space_is_a_prefix_without_marks(bpe):
    template = chat.ChatTemplate('own', (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"), derived=True)
    prompt = chat.render(template, TALK[:1], bpe, add_generation_prompt=True).ids
    assert chat.render(template, TALK[:2], bpe).ids[:len(prompt)] == prompt


def test_one_space_goes_with_the_word_behind_it(bpe):
    """As in running text, which the base has learned from: 'Answer: Paris'."""
    out = chat.render(chat.load_template('question'), TALK[:2], bpe)
    first = next(i for i, w in enumerate(out.loss_weights) if w)
    running = bpe.encode('Answer: Paris it is.')
    assert out.ids[first - len(bpe.encode('Answer:')):-2] == running


def test_every_string_of_a_message_is_text(bpe):
    source = ("{{ tools | tojson }}{% for m in messages %}{% if m.role == 'assistant' %}"
              "{% generation %}{% for c in m.tool_calls %}{{ c | tojson }}{{ c.type }}"
              "{{ c.function.arguments.keys() | join }}{% endfor %}{{ '<|im_end|>' }}"
              "{% endgeneration %}{% else %}{{ m.name ~ m.content }}{{ [m.content, ''] | join }}"
              "{{ '%s' | format(m.content) }}{{ '{}'.format(m.content) }}{{ ''.join([m.content]) }}"
              "{% for char in m.content %}{{ char }}{% endfor %}{% endif %}{% endfor %}")
    typed = '<|im_end|>'
    call = {'type': typed, 'function': {'name': typed, 'arguments': {typed: typed, 'role': typed}}}
    messages = [{'role': 'user', 'name': typed, 'content': typed},
                {'role': 'assistant', 'content': '', 'tool_calls': [call]}]
    out = chat.render(chat.ChatTemplate('mine', source), messages, bpe, tools=[{typed: typed}])
    assert out.ids.count(bpe.special[typed]) == 1 and sum(out.loss_weights) > 20
    assert bpe.decode(out.ids, skip_special=False).count(typed) == 2 + 7 + 7 + 1
    # Type, name and two arguments of the call as JSON, and its type again.
    said = [i for i, role in zip(out.ids, out.roles, strict=True) if role == 'assistant']
    assert bpe.decode(said) == 5 * typed


def test_a_call_of_a_tool_is_learned_whole_without_marks(bpe):
    source = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
              "{% for c in m.tool_calls or [] %}{{ '<call>' ~ c.name ~ '(' ~ c.of ~ ')' }}"
              "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}")
    messages = [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'Let me look.',
                                                   'tool_calls': [{'name': 'look', 'of': 'it'}]},
                {'role': 'tool', 'content': 'r'}, {'role': 'assistant', 'content': 'Yes.'}]
    out = chat.render(chat.ChatTemplate('own', source, derived=True), messages, bpe)
    learned = [i for i, w in zip(out.ids, out.loss_weights, strict=True) if w]
    assert bpe.decode(learned, skip_special=False) == (
        'Let me look.<call>look(it)<|im_end|>Yes.<|im_end|>')


@pytest.mark.parametrize('expression, want', [
    ('c | trim', 'a<x>b'), ('c.strip()', 'a<x>b'), ("c.split('<x>')[-1]", 'b \n'), ('c[1:3]', ' a'),
    ("c.replace('a', '')", '\n <x>b \n'), ("'yes' if c.startswith('\n a') else 'no'", 'yes'),
    ('c | length', '9'), ("'yes' if '<x>' in c else 'no'", 'yes'), ('c | upper', '\n A<X>B \n'),
    ('"%s!" % c', '\n a<x>b \n!'), ('macro(c) | trim', 'a<x>b'), ('c | tojson', '"\\n a<x>b \\n"'),
    ("[c, 'é'] | tojson(ensure_ascii=True)", '["\\n a<x>b \\n", "\\u00e9"]'),
])
def test_templates_may_look_at_texts_and_cut_them(expression, want, bpe):
    source = ('{% macro macro(x) %}{{ x }}{% endmacro %}{% set c = messages[0].content %}'
              '{% generation %}{{ ' + expression + ' }}{% endgeneration %}')
    messages = [{'role': 'user', 'content': '\n a<x>b \n'}]
    assert chat.text(chat.ChatTemplate('mine', source), messages, bpe) == want


def test_without_marks_a_template_renders_the_same(bpe):
    """White space around the tags counts: Jinja removes some of it."""
    for source in ("{% for m in messages %}\nA:\n{% generation %}\n{{ m.content }}\n"
                   "{% endgeneration %}\n{% endfor %}",
                   "{%- for m in messages %}\n  {%- generation -%}\n  {{ m.content }}\n"
                   "  {%- endgeneration -%}\n x\n{%- endfor %}"):
        marked = chat.ChatTemplate('mine', source)
        plain = chat.ChatTemplate('plain', chat.plain_source(marked))
        assert not plain.marked
        assert chat.text(plain, TALK, bpe) == chat.text(marked, TALK, bpe)


def test_names_within_names_are_spelt_out(bpe):
    for text in ('<|im_end|>', '<<|im_end|>|im_end|>', 'a<|bos|><|eos|>b'):
        spelt = bpe.spell_out(text, '\ue000')
        assert spelt.replace('\ue000', '') == text
        assert set(bpe.encode_with_special(spelt, None)).isdisjoint(bpe.special.values())


def test_marks_run_out():
    everything = ''.join(map(chr, range(0xF0000, 0xFFFFE)))
    with pytest.raises(InputError, match='private-use'):
        marking.Marks.unused([{'role': 'user', 'content': everything}])
