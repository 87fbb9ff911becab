"""The contrast set: what goes in comes out checked, labelled and in order."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertsteer.contrast.contrast_set import ContrastSet, ContrastSetError, Example
from helpers.command import python

USER = {"role": "user", "content": "2 + 2?"}


def write(folder, *rows):
    """A JSON-lines file; strings are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = folder / "contrast.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def problems(path):
    with pytest.raises(ContrastSetError) as caught:
        ContrastSet.from_jsonl(path)
    return dict(caught.value.problems)


def numbered(count, pairs=False):
    if pairs:
        return ContrastSet.from_pairs([(f"yes {i}", f"no {i}") for i in range(count)])
    return ContrastSet.from_texts(
        [f"text {i}" for i in range(count)], [i % 2 for i in range(count)]
    )


# Reading


def test_text_rows_keep_text_label_and_order(tmp_path):
    path = write(tmp_path, {"text": "é a", "label": 1}, {"text": " b\n", "label": 0})
    assert list(ContrastSet.from_jsonl(path)) == [Example("é a", 1), Example(" b\n", 0)]


def test_pair_rows_become_prompt_plus_each_side(tmp_path):
    row = {"prompt": "The sky is", "positive": " blue", "negative": " green", "source": "x"}
    contrast = ContrastSet.from_jsonl(write(tmp_path, row, {"text": "alone", "label": 0}))
    assert list(contrast) == [
        Example("The sky is blue", 1, 0),
        Example("The sky is green", 0, 0),
        Example("alone", 0, None),
    ]


def test_a_prompt_of_messages_is_answered_by_the_assistant(tmp_path):
    contrast = ContrastSet.from_jsonl(
        write(tmp_path, {"prompt": [USER], "positive": "four", "negative": "five"})
    )
    assert contrast.texts == (
        (USER, {"role": "assistant", "content": "four"}),
        (USER, {"role": "assistant", "content": "five"}),
    )


def test_pairs_can_be_given_as_tuples_or_mappings():
    as_row = {"prompt": "p ", "positive": "a", "negative": "b"}
    assert ContrastSet.from_pairs([as_row]) == ContrastSet.from_pairs([("p ", "a", "b")])
    assert ContrastSet.from_pairs([("p a", "p b")]).texts == ("p a", "p b")
    messages = ([USER], [USER, {"role": "assistant", "content": "four"}])
    assert ContrastSet.from_pairs([messages]).texts == tuple(map(tuple, messages))


def test_given_pair_numbers_hold_examples_together(tmp_path):
    rows = [{"text": f"t{i}", "label": i % 2, "pair": 7 + i // 2} for i in range(4)]
    assert ContrastSet.from_jsonl(write(tmp_path, *rows)).pairs == (0, 0, 1, 1)
    assert ContrastSet.from_texts(["a", "b", "c"], [0, 1, 1], [5, 5, None]).pairs == (0, 0, None)


def test_labels_may_come_from_numpy_torch_or_booleans():
    numpy, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    for labels in (
        numpy.array([0, 1]),
        torch.tensor([0, 1]),
        [False, True],
        numpy.array([0, 1]) > 0,
    ):
        made = ContrastSet.from_texts(["a", "b"], labels)
        assert made.labels == (0, 1) and {type(label) for label in made.labels} == {int}


def test_windows_line_ends_byte_order_mark_and_blank_end_are_accepted(tmp_path):
    path = tmp_path / "contrast.jsonl"
    rows = [b'\xef\xbb\xbf{"text": "a", "label": 1}', b'{"text": "b", "label": 0}', b"  ", b"", b""]
    path.write_bytes(b"\r\n".join(rows))
    assert ContrastSet.from_jsonl(path).texts == ("a", "b")


# Bad rows

MALFORMED = [
    ("{oops", "not valid JSON"),
    ("[" * 100_000, "JSON"),
    ("", "blank line"),
    ("3", "expected an object"),
    ("{}", "came the keys (none)"),
    ({"txt": "a", "label": 1}, "'text' missing"),
    ({"text": "a"}, "'label' missing"),
    ({"text": "a", "label": 2}, "must be 0 or 1, came 2"),
    ({"text": "a", "label": "1"}, "must be 0 or 1, came '1'"),
    ({"text": "a", "label": 1.0}, "must be 0 or 1, came 1.0"),
    ({"text": "a", "label": None}, "must be 0 or 1, came None"),
    ({"text": "a", "label": 1, "pair": "x"}, "'pair' must be an integer"),
    ({"text": " ", "label": 1}, "'text' is empty"),
    ({"text": 5, "label": 1}, "must be a string or a list of messages"),
    ({"text": [], "label": 1}, "empty list of messages"),
    ({"text": ["hello"], "label": 1}, "text[0] must be a message"),
    ({"text": [{"role": "user"}], "label": 1}, "text[0] must be a message"),
    ({"text": [{"role": "user", "content": None}], "label": 1}, "text[0]['content'] must be"),
    ({"text": "a", "label": 1, "positive": "b"}, "came the keys"),
    ({"positive": "a", "negative": "b"}, "'prompt' missing"),
    ({"prompt": "a", "positive": "b"}, "'negative' missing"),
    ({"prompt": "a", "positive": "b", "negative": "b"}, "holds no contrast"),
    ({"prompt": "a", "positive": "b", "negative": ""}, "'negative' is empty"),
    ({"prompt": "a", "positive": [USER], "negative": "b"}, "'positive' must be a string"),
    ({"prompt": 1, "positive": "a", "negative": "b"}, "'prompt' must be a string or"),
    ('{"text": "\\ud800", "label": 1}', "lone surrogate"),
]


@pytest.mark.parametrize("row, reason", MALFORMED, ids=[reason for _, reason in MALFORMED])
def test_a_malformed_row_is_named_with_its_reason(tmp_path, row, reason):
    good = {"text": "a", "label": 1}
    found = problems(write(tmp_path, good, row, good))
    assert list(found) == ["line 2"]
    assert reason in found["line 2"]


def test_every_malformed_row_is_reported_and_a_long_list_is_cut_short(tmp_path):
    rows = [{"text": "a", "label": i} for i in range(40)]
    path = write(tmp_path, *rows)
    assert list(problems(path)) == [f"line {i}" for i in range(3, 41)]
    with pytest.raises(ValueError, match="38 of 40 rows malformed") as caught:
        ContrastSet.from_jsonl(path)
    assert str(caught.value).count("\n") == 21
    assert str(caught.value).endswith("... and 18 more")


def test_bytes_that_are_not_text_are_reported_by_line(tmp_path):
    path = tmp_path / "contrast.jsonl"
    path.write_bytes(b'{"text": "a", "label": 1}\n{"text": "\xff", "label": 0}\n')
    assert problems(path) == {"line 2": "not UTF-8 text (byte 11 of the line)"}


@pytest.mark.parametrize("pair", ["ab", ("a",), ("a", "b", "c", "d"), 3, None])
def test_a_malformed_pair_is_named_by_its_index(pair):
    with pytest.raises(ContrastSetError, match=r"pair 1: expected \(positive, negative\)"):
        ContrastSet.from_pairs([("a", "b"), pair])


def test_texts_and_labels_of_different_length_are_refused():
    with pytest.raises(ContrastSetError, match="2 texts, 1 labels"):
        ContrastSet.from_texts(["a", "b"], [1])
    with pytest.raises(ContrastSetError, match="single string"):
        ContrastSet.from_texts("ab", [0, 1])


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ContrastSetError, match="path must name a JSON-lines file"):
            ContrastSet.from_jsonl(path)


def test_empty_and_one_class_sets_are_refused(tmp_path):
    for make in (
        lambda: ContrastSet(()),
        lambda: ContrastSet.from_pairs([]),
        lambda: ContrastSet.from_texts([], []),
        lambda: ContrastSet.from_jsonl(write(tmp_path, "")),
    ):
        with pytest.raises(ContrastSetError, match="at least one example"):
            make()
    with pytest.raises(ContrastSetError, match="both labels, 0 and 1; all 2 came with label 1"):
        ContrastSet.from_texts(["a", "b"], [1, 1])


# A sequence


def test_it_is_an_immutable_sequence():
    contrast = numbered(6)
    assert len(contrast) == 6 and contrast[-1] == Example("text 5", 1)
    assert isinstance(contrast[1:3], ContrastSet) and contrast[1:3].texts == ("text 1", "text 2")
    assert contrast[2] in contrast and contrast.index(contrast[3]) == 3
    assert repr(contrast) == "ContrastSet(6 examples: 3 positive, 3 negative)"
    with pytest.raises(AttributeError):
        contrast.examples = ()
    with pytest.raises(AttributeError):
        contrast[0].label = 0


def test_take_orders_rows_and_may_leave_one_label():
    torch = pytest.importorskip("torch")
    contrast = numbered(6)
    assert contrast.take([5, 1]).texts == ("text 5", "text 1")
    assert contrast.take([5, 1]).labels == (1, 1)
    assert contrast.take(torch.tensor([5, 1])) == contrast.take([5, 1])
    for rows, reason in (([6], "out of range"), ([], "at least one"), ([True], "integer")):
        with pytest.raises(ContrastSetError, match=reason):
            contrast.take(rows)


def test_keys_tell_texts_labels_and_messages_apart():
    examples = [Example("a", 0), Example("a", 1), Example("b", 0), Example((USER,), 0)]
    examples.append(Example(json.dumps([USER]), 0))
    assert len({example.key for example in examples}) == len(examples)
    assert all(-(2**63) <= example.key < 2**63 for example in examples)
    # A key does not depend on where the example stands or on its pair.
    assert Example("a", 0, 3).key == Example("a", 0).key
    assert numbered(6).take([4]).keys == (numbered(6).keys[4],)


# Splitting

FRACTIONS = st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (0.8, 0.1, 0.1)])


@given(
    paired=st.integers(0, 40),
    singles=st.tuples(st.integers(0, 30), st.integers(0, 30)),
    fractions=FRACTIONS,
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_a_split_is_a_stratified_partition_that_keeps_pairs_together(
    paired, singles, fractions, seed
):
    rows = [(f"p{i // 2}{i % 2}", i % 2, i // 2) for i in range(2 * paired)]
    rows += [(f"s{label}{i}", label, None) for label in (0, 1) for i in range(singles[label])]
    groups = [count for count in (paired, *singles) if count]
    if not paired and not all(singles):
        return
    contrast = ContrastSet.from_texts(*zip(*rows))
    try:
        parts = contrast.split(*fractions, seed=seed)
    except ContrastSetError:
        enough = 1 / min(fractions)
        assert paired < enough and min(singles) < enough
        return
    assert sorted(e.text for part in parts for e in part) == sorted(contrast.texts)
    for part, fraction in zip(parts, fractions):
        assert set(part.labels) == {0, 1}
        # Each kind of example (pairs, singles of a label) is shared out to within one unit.
        for label in (0, 1):
            share = fraction * contrast.labels.count(label)
            assert abs(part.labels.count(label) - share) <= len(groups)
        assert [contrast.texts.index(t) for t in part.texts] == sorted(
            contrast.texts.index(t) for t in part.texts
        )
    homes = [{e.pair for e in part if e.pair is not None} for part in parts]
    assert not (homes[0] & homes[1] or homes[0] & homes[2] or homes[1] & homes[2])


def test_seeds_give_different_parts_and_the_same_seed_the_same():
    contrast = numbered(60, pairs=True)
    assert contrast.split(seed=1) == contrast.split(seed=1)
    assert contrast.split(seed=1) != contrast.split(seed=2)


def test_keys_and_splits_are_the_same_in_every_process():
    code = (
        "import sys; from expertsteer.contrast import ContrastSet as C\n"
        "c = C.from_pairs([(f'yes {i}', f'no {i}') for i in range(20)])\n"
        "print(c.keys[:3], [p.pairs for p in c.split(seed=3)])\n"
    )
    printed = python("-c", code, PYTHONHASHSEED="12345")
    contrast = numbered(20, pairs=True)
    expected = (contrast.keys[:3], [part.pairs for part in contrast.split(seed=3)])
    assert printed.strip() == " ".join(map(str, expected))


def test_a_split_that_cannot_hold_both_labels_says_how_many_are_needed():
    with pytest.raises(ContrastSetError, match="test part would have no example.* 7 pairs"):
        numbered(3, pairs=True).split()
    assert [len(part) for part in numbered(7, pairs=True).split()] == [10, 2, 2]
    with pytest.raises(ContrastSetError, match="no example of label 1"):
        numbered(20).take(range(0, 20, 2)).split()


@pytest.mark.parametrize("fractions", [(0.7, 0.3, 0.0), (0.7, 0.2, 0.2), (1.2, -0.1, -0.1)])
def test_other_fractions_are_refused(fractions):
    with pytest.raises(ContrastSetError, match="sum to 1"):
        numbered(40).split(*fractions)
