"""What the page of a comparison says of refusals: how many prompts, and how they were asked."""

from jaxllm.report import compare


def test_refusals_are_told_with_the_number_of_prompts():
    found = {'value': 0.25, 'low': 0.07, 'high': 0.59, 'n': 8}
    rows = [{'artefact': 'sft', 'safety': {}}, {'artefact': 'aligned', 'safety': {
        'refuses_unsafe': found, 'refuses_benign': found | {'n': 29}, 'abstains_answerable': None}}]
    text = compare._refusing({'rows': rows})
    assert 'refuses what is harmful: 8, refuses the harmless: 29' in text
    assert 'though it was told: none' in text  # no prompt of this kind
    assert 'sampled' in text
    assert '0.250 [0.070, 0.590]' in text and 'sft' not in text
    assert compare._refusing({'rows': rows[:1]}) == ''
