"""Contrast sets from jsonl, parquet and data sets: the same examples, in memory or as a stream."""

import json
import tracemalloc

import pytest

import expertsteer as es
from expertsteer.contrast.contrast_set import Example
from expertsteer.contrast.stream import parts

datasets = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ASK = [{"role": "user", "content": "2 + 2?"}]
FORMS = {
    "text": [{"text": "é a", "label": 1}, {"text": "b", "label": 0}],
    "text in pairs": [{"text": f"t{i}", "label": i % 2, "pair": 9 - i // 2} for i in range(6)],
    "pairs": [
        {"prompt": "The sky is", "positive": " blue", "negative": " green"},
        {"prompt": "Snow is", "positive": " white", "negative": " red"},
    ],
    "messages": [
        {"messages": [*ASK, {"role": "assistant", "content": "4"}], "label": 1},
        {"messages": ASK, "label": 0},
    ],
    "prompt of messages": [{"prompt": ASK, "positive": "4", "negative": "5"}],
    "sides of messages": [
        {
            "prompt": None,
            "positive": [*ASK, {"role": "assistant", "content": "4"}],
            "negative": [*ASK, {"role": "assistant", "content": "5"}],
        }
    ],
}


def jsonl(folder, rows):
    path = folder / "contrast.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def parquet(folder, rows, **options):
    path = folder / "contrast.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_from_every_source(tmp_path, form):
    rows = FORMS[form]
    expected = es.ContrastSet.from_jsonl(jsonl(tmp_path, rows))
    dataset = datasets.Dataset.from_list(rows)
    sources = {
        "jsonl": es.ContrastStream.from_file(jsonl(tmp_path, rows)),
        "parquet": es.ContrastStream.from_file(parquet(tmp_path, rows)),
        "dataset": es.ContrastStream.from_dataset(dataset),
        "iterable": es.ContrastStream.from_dataset(dataset.to_iterable_dataset()),
        "list": es.ContrastStream.from_dataset(rows),
    }
    for name, stream in sources.items():
        assert list(stream.read()) == list(expected), name
        told = stream.summary()
        assert told.digest == expected.digest and told.examples == len(expected), name
        assert told.positive == sum(expected.labels) and list(stream) == list(expected), name
    assert list(es.ContrastSet.from_file(tmp_path / "contrast.parquet")) == list(expected)
    assert list(es.ContrastSet.from_dataset(dataset)) == list(expected)


def test_the_digest_tells_texts_labels_pairs_and_order():
    base = es.ContrastSet.from_texts(["a", "b", "c"], [0, 1, 1], [5, 5, None])
    same = es.ContrastSet((Example("a", 0, 8), Example("b", 1, 8), Example("c", 1)))
    assert same.digest == base.digest  # numbers of pairs are names, no more
    others = [
        es.ContrastSet.from_texts(["a", "b", "d"], [0, 1, 1], [5, 5, None]),
        es.ContrastSet.from_texts(["a", "b", "c"], [0, 1, 0], [5, 5, None]),
        es.ContrastSet.from_texts(["a", "b", "c"], [0, 1, 1]),
        base.take([1, 0, 2]),
        base.take([0, 1]),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 6


def test_a_table_of_two_forms_has_empty_cells(tmp_path):
    rows = [
        {"text": "a", "label": 1, "prompt": None, "positive": None, "negative": None},
        {"text": None, "label": None, "prompt": None, "positive": "b", "negative": "c"},
    ]
    contrast = es.ContrastSet.from_file(parquet(tmp_path, rows))
    assert list(contrast) == [Example("a", 1), Example("b", 1, 0), Example("c", 0, 0)]
    # Messages as a structure of lists, as some releases of datasets keep them.
    columns = {"messages": {"role": ["user"], "content": ["2 + 2?"]}}
    contrast = es.ContrastSet.from_dataset([columns | {"label": 1}, {"text": "a", "label": 0}])
    assert contrast[0] == Example(tuple(ASK), 1)


def test_columns_may_have_other_names(tmp_path):
    rows = [{"q": "The sky is", "chosen": " blue", "rejected": " green", "text": "unused"}]
    columns = {"prompt": "q", "positive": "chosen", "negative": "rejected"}
    expected = [Example("The sky is blue", 1, 0), Example("The sky is green", 0, 0)]
    pair = [{name: row[name] for name in ("q", "chosen", "rejected")} for row in rows]
    for path in (jsonl(tmp_path, pair), parquet(tmp_path, pair)):
        assert list(es.ContrastSet.from_file(path, columns)) == expected
    swapped = [{"text": "rejected one", "label": 0, "other": "one"}, {"label": 1, "other": "two"}]
    contrast = es.ContrastSet.from_dataset(swapped, {"text": "other"})
    assert [e.text for e in contrast] == ["one", "two"]
    with pytest.raises(es.ContrastSetError, match=r"prompt=nowhere not there; it has q, chosen"):
        es.ContrastSet.from_file(parquet(tmp_path, pair), {"prompt": "nowhere"})
    with pytest.raises(es.ContrastSetError, match=r"none of its columns \(q, chosen, rejected\)"):
        es.ContrastSet.from_file(tmp_path / "contrast.parquet")
    with pytest.raises(es.ContrastSetError, match="'question' is no field of a row; fields are"):
        es.ContrastSet.from_file(tmp_path / "contrast.parquet", {"question": "q"})


def test_malformed_rows_are_all_named(tmp_path):
    rows = [{"text": f"t{i}", "label": i % 2} for i in range(300)]
    rows[3]["label"], rows[299]["text"] = 2, " "
    stream = es.ContrastStream.from_file(parquet(tmp_path, rows))
    with pytest.raises(es.ContrastSetError, match="2 of 300 rows malformed") as caught:
        stream.summary()
    assert caught.value.problems == (
        ("row 3", "'label' must be 0 or 1, came 2"),
        ("row 299", "'text' is empty"),
    )


@pytest.mark.parametrize("label, reason", [(1, "all 3 with one label"), (None, "came none")])
def test_a_stream_needs_examples_of_both_labels(label, reason):
    rows = [] if label is None else [{"text": f"t{i}", "label": label} for i in range(3)]
    with pytest.raises(es.ContrastSetError, match=reason):
        es.ContrastStream.from_dataset(rows).summary()


def test_sources_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "bad.parquet").write_text("no table")
    (tmp_path / "set.csv").write_text("text,label")
    for name, reason in (
        ("bad.parquet", "bad.parquet: truncated, damaged or foreign parquet file"),
        ("set.csv", r"must end in one of .jsonl, .ndjson, .json, .parquet, came 'set.csv'"),
        ("nowhere.jsonl", "there is none at .*nowhere.jsonl"),
    ):
        with pytest.raises(es.ContrastSetError, match=reason):
            es.ContrastSet.from_file(tmp_path / name)
    with pytest.raises(es.ContrastSetError, match="readable more than once, came a one-time gene"):
        es.ContrastStream.from_dataset(row for row in FORMS["text"])
    with pytest.raises(es.ContrastSetError, match="dataset must be a data set or rows"):
        es.ContrastStream.from_dataset("contrast.jsonl")
    splits = datasets.DatasetDict(train=datasets.Dataset.from_list(FORMS["text"]))
    with pytest.raises(es.ContrastSetError, match="choose one|one split"):
        es.ContrastSet.from_dataset(splits)


def test_a_file_that_changes_between_readings_is_noticed(tmp_path):
    path = jsonl(tmp_path, FORMS["text"])
    stream = es.ContrastStream.from_file(path)
    stream.summary()
    jsonl(tmp_path, FORMS["text in pairs"])
    with pytest.raises(es.ContrastSetError, match="changed since it was first read"):
        list(stream)


@pytest.mark.parametrize("wanted", [{0}, {1, 3}, {0, 1, 2, 3}, set()])
def test_parts_are_runs_of_the_whole(wanted):
    rows = [Example(f"t{i}", i % 2) for i in range(10)]
    expected = [(k, rows[3 * k : 3 * k + 3]) for k in sorted(wanted)]
    assert list(parts(rows, 3, wanted)) == expected


def test_a_stream_is_never_held(tmp_path):
    rows = [{"text": "x" * 20_000 + str(i), "label": i % 2} for i in range(1500)]
    path = parquet(tmp_path, rows, row_group_size=100, use_dictionary=False)
    size = sum(len(row["text"]) for row in rows)
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        assert es.ContrastStream.from_file(path).summary().examples == 1500
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(default)
    assert 0 < pool.max_memory() < size / 3 and held < size / 3
