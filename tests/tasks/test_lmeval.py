"""The lm-eval bridge: our definitions against those that lm-eval ships, request by request, and results against our own tasks."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from methods.spec import UserError
from tasks.base import EvalOptions
from tasks.choice import Choice
from tasks.lmeval import FOLDER, LmEval, _load, _manager
from tasks.lmeval_own import OWN
from tasks.spec import ChoiceConfig, LmEvalConfig
from tasks.templates import TEMPLATES

STOCK = {
    "piqa": ("piqa", "piqa"),
    "arc_easy": ("arc", "arc_easy"),
    "arc_challenge": ("arc", "arc_challenge"),
    "hellaswag": ("hellaswag", "hellaswag"),
    "winogrande": ("winogrande", "winogrande"),
    "boolq": ("super_glue/boolq", "boolq"),
    "social_iqa": ("siqa", "social_iqa"),
    "openbookqa": ("openbookqa", "openbookqa"),
    "gsm8k": ("gsm8k", "gsm8k"),
    "wikitext2": ("wikitext", "wikitext"),
}
"""Folder and name of the definition that lm-eval ships."""
TESTED = ("arc_easy", "arc_challenge", "openbookqa", "gsm8k", "wikitext2")


def config(task: str, **changes: Any) -> LmEvalConfig:
    split = "test" if task in TESTED else "validation"
    values = {
        "name": f"lmeval/{task}", "kind": "lmeval", "task": task, "builtin": False, "dataset": task, "split": split,
        "shots": OWN[task].shots if task in OWN else None, "limit": None, "version": 1,
    }  # fmt: skip
    return LmEvalConfig(**values | changes)


def stock(task: str, splits: dict[str, datasets.Dataset], shots: int) -> Any:
    """lm-eval's own definition on given rows, without indexing all that it ships."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    place, name = STOCK[task]
    manager = TaskManager(include_path=str(Path(lm_eval.__file__).parent / "tasks" / place), include_defaults=False)
    rows = {"custom_dataset": lambda **_: datasets.DatasetDict(splits), "training_split": None, "validation_split": None}
    shown = {"test_split": "evaluation", "fewshot_split": "shots" if shots else None, "num_fewshot": shots}
    return manager.load({"group": "stock", "task": [{"task": name, **rows, **shown}]})["tasks"][name]


def requests(task: Any, shots: int, limit: int | None) -> list[Any]:
    """Per request in order: document, index, arguments and target."""
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=1234)
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    return [(i.doc_id, i.idx, i.args, task.doc_to_target(i.doc)) for i in task.instances]


def both(task: str, folder: Any, limit: int | None, shots: int | None = None) -> tuple[Any, Any]:
    """Requests of our definition and of lm-eval's on the same rows."""
    given = config(task, limit=limit if OWN[task].row_is_document else None, shots=OWN[task].shots if shots is None else shots)
    whole = LmEval(given, folder)
    splits = dict(whole._rows_for_lm_eval())
    if task == "boolq":  # lm-eval reads SuperGLUE's copy, whose answers are labels
        splits = {name: rows.add_column("label", [int(a) for a in rows["answer"]]) for name, rows in splits.items()}
    if task == "wikitext2":  # and whole articles
        splits = {"evaluation": whole.tasks[task].eval_docs}
    return whole.tasks[task], stock(task, splits, given.shots)


@pytest.mark.parametrize("task", STOCK)
def test_requests_equal_those_of_lm_evals_own_definitions(task: str, folder: Any) -> None:
    ours, theirs = both(task, folder, 40)
    shots = OWN[task].shots
    found, expected = requests(ours, shots, 40), requests(theirs, shots, 40)
    if ours.OUTPUT_TYPE == "generate_until":
        assert [r[2][1] for r in found] == [r[2][1] for r in expected]
    assert found == expected and len({doc for doc, *_ in found}) == 40


@pytest.mark.accept
@pytest.mark.parametrize("task", STOCK)
def test_all_requests_equal_those_of_lm_evals_own_definitions(task: str, folder: Any) -> None:
    ours, theirs = both(task, folder, None)
    shots = OWN[task].shots
    assert requests(ours, shots, None) == requests(theirs, shots, None)


@pytest.mark.parametrize("dataset", [name for name in TEMPLATES if not name.startswith("toy/")])
def test_our_own_multiple_choice_scores_the_same_requests(dataset: str, folder: Any) -> None:
    """`tasks/choice.py` beside the bridge: contexts, continuations and gold of the first 40 rows."""
    questions = Choice(choice_config(dataset, 40), folder).questions("evaluation")
    _, theirs = both(dataset, folder, 40)
    found = [pair for question in questions for pair in zip(question.contexts, question.continuations, strict=True)]
    assert found == [arguments for _, _, arguments, _ in requests(theirs, 0, 40)]
    gold = [theirs.doc_to_text(doc) if dataset == "winogrande" else theirs.doc_to_target(doc) for doc in theirs.eval_docs]
    assert [question.gold for question in questions] == [int(label) for label in gold]


def choice_config(dataset: str, limit: int) -> ChoiceConfig:
    split = "test" if dataset in TESTED else "validation"
    return ChoiceConfig(f"commonsense/{dataset}", "choice", dataset, "accuracy", split, limit, 1)


COMPLETIONS = [
    " 2 + 2 = 4\n#### 4", "#### 1,234", "#### -7.", "#### $18", "the answer is 18.", "$18.50 in all", "so 3,000 dollars",
    "no number", "", "#### 4\n#### 5", "10 apples\nQuestion: 5", "#### 4 apples", "-3", "1/2", ".", "5%", "#### 0.50", "x=7, y=$9.",
]  # fmt: skip


@pytest.mark.parametrize("answer", ["... #### 4", "#### 1,234", "#### 18", "#### -7", "#### 3000"])
def test_filters_and_judgement_of_gsm8k_are_lm_evals(answer: str, folder: Any) -> None:
    ours, theirs = both("gsm8k", folder, 2, shots=0)
    document = {"question": "q", "answer": answer}
    names = dict(zip([f.name for f in ours._filters], [f.name for f in theirs._filters], strict=True))
    assert names == {"strict": "strict-match", "flexible": "flexible-extract"}
    for mine, its in zip(ours._filters, theirs._filters, strict=True):
        extracted = [[apply(kept, text) for text in COMPLETIONS] for kept in (mine, its)]
        assert extracted[0] == extracted[1]
        judged = [[task.process_results(document, [text]) for text in extracted[0]] for task in (ours, theirs)]
        assert judged[0] == judged[1]


def apply(ensemble: Any, text: str) -> str:
    """What a filter takes out of one completion."""
    from lm_eval.api.instance import Instance

    instance = Instance("generate_until", {}, ("", {}), 0)
    instance.resps = [text]
    ensemble.apply([instance])
    return instance.filtered_resps[ensemble.name]


def test_wikitext_is_cut_into_its_62_articles(folder: Any) -> None:
    documents = LmEval(config("wikitext2"), folder).tasks["wikitext2"].eval_docs
    assert len(documents) == 62
    assert documents[0]["page"].startswith(" = Robert Boulter = \n \n Robert Boulter is an English film")
    assert abs(sum(len(page.encode()) + 1 for page in documents["page"]) - 1_290_590) < 10  # bytes of the raw test file


def test_log_likelihoods_and_choices_equal_our_own_task(folder: Any, tiny: Any, byte_tokenizer: Any) -> None:
    model = tiny("llama", "CausalLM", positions=512)
    (part,) = LmEval(config("arc_easy", limit=8), folder).parts()
    theirs = part.evaluate(model, byte_tokenizer, "evaluation", EvalOptions(batch=4))
    ours = Choice(choice_config("arc_easy", 8), folder).evaluate(model, byte_tokenizer, "evaluation", EvalOptions(batch=4))
    assert part.protocol() == "arc_easy@loglikelihood-lmeval[:8]" and theirs.primary == "acc" and theirs.higher_is_better
    assert theirs.predictions["example"] == ours.predictions["example"]
    assert theirs.predictions["score"] == ours.predictions["score"]
    for a, b in zip(theirs.predictions["loglikelihoods"], ours.predictions["loglikelihoods"], strict=True):
        assert a == pytest.approx(b, abs=1e-3)
    assert theirs.metrics == pytest.approx({"acc": ours.metrics["accuracy"], "acc_norm": ours.metrics["accuracy_norm"]})
    assert part.splits()["evaluation"].split == "test[:8]"


def test_one_run_serves_both_filters_and_leaves_model_and_tokenizer_alone(folder: Any, tiny: Any, byte_tokenizer: Any) -> None:
    model = tiny("llama", "CausalLM", positions=2048)
    head = model.lm_head.weight.data_ptr()
    model.config.tie_word_embeddings = True  # tying now would replace the output layer
    model.train()
    model.model.norm.eval()
    before = byte_tokenizer.backend_tokenizer.to_str()
    parts = LmEval(config("gsm8k", limit=2, shots=1), folder).parts()
    found = [part.evaluate(model, byte_tokenizer, "evaluation", EvalOptions(batch=2)) for part in parts]
    assert [part.protocol() for part in parts] == ["gsm8k@strict-1shot[:2]", "gsm8k@flexible-1shot[:2]"]
    assert found[0].predictions["completion"] == found[1].predictions["completion"]
    assert found[0].primary == "exact_match" and set(found[0].metrics) == {"exact_match"}
    assert model.training and not model.model.norm.training and model.lm_head.weight.data_ptr() == head
    assert "tie_weights" not in vars(model) and byte_tokenizer.backend_tokenizer.to_str() == before
    assert [len(r.data) for r in LmEval(config("gsm8k", limit=2), folder).splits().values()] == [2, 7473]


def test_word_perplexity_is_the_sum_over_words(folder: Any, tiny: Any, byte_tokenizer: Any) -> None:
    """A uniform model: every byte costs log V nats, the first included."""
    import numpy as np
    import torch

    model = tiny("llama", "CausalLM", positions=512)
    torch.nn.init.zeros_(model.lm_head.weight)
    (part,) = LmEval(config("wikitext2", limit=1), folder).parts()
    found = part.evaluate(model, byte_tokenizer, "evaluation", EvalOptions(batch=8))
    page = part.task.eval_docs[0]
    plain = part.task.doc_to_target(page)
    nats = len(byte_tokenizer.encode(plain)) * np.log(len(byte_tokenizer))
    assert part.protocol() == "wikitext2@word-ppl[:1]" and not found.higher_is_better
    assert found.predictions["nll"] == pytest.approx([nats], rel=1e-5)
    assert np.log(found.metrics["word_perplexity"]) == pytest.approx(found.predictions["score"][0])
    assert found.metrics["bits_per_byte"] == pytest.approx(nats / np.log(2) / len(page["page"].encode()), rel=1e-5)


def test_what_lm_eval_refuses_is_one_sentence(folder: Any, tiny: Any, byte_tokenizer: Any) -> None:
    with pytest.raises(UserError, match=r"lm-eval refuses task\.task=gsm8k on this model: .*256"):
        part = LmEval(config("gsm8k", limit=1, shots=0), folder).parts()[0]
        part.evaluate(tiny("llama", "CausalLM", positions=128), byte_tokenizer, "evaluation", EvalOptions())


def test_configurations_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"task\.task=mmlu is none of ours \(piqa, .*\); type task\.builtin=true"):
        config("mmlu", dataset="piqa", shots=0)
    with pytest.raises(UserError, match=r"task\.dataset=null needs task\.builtin=true"):
        config("piqa", dataset=None)
    with pytest.raises(UserError, match=r"task\.dataset needs task\.split=<split> and task\.shots=<number>"):
        config("piqa", builtin=True, shots=None)


def test_a_task_of_lm_eval_needs_the_hub_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.sources import Sources

    hub = config("piqa", builtin=True, dataset=None, split=None, shots=None)
    with pytest.raises(UserError, match=r"^lm-eval's task piqa reads its rows from the hub, which run\.offline=true forbids$"):
        LmEval(hub, Sources(None, tmp_path, offline=True)).splits()
    import httpx

    def unresolved(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(httpx, "head", unresolved)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"^the hub does not answer \(no route\); lm-eval's task piqa reads its rows from there$"):
        LmEval(hub, Sources(None, tmp_path)).splits()


def test_ids_name_the_engine_of_what_lm_eval_defines() -> None:
    from importlib.metadata import version

    hub = config("mmlu", builtin=True, dataset=None, split=None, shots=5, limit=10)
    engine = f"lm-eval-{version('lm_eval')}"
    assert hub.reported("mmlu_anatomy", "none", 5) == f"{engine}/mmlu_anatomy@5shot[:10]"
    assert hub.reported("gsm8k", "strict-match", 5) == f"{engine}/gsm8k@5shot-strict-match[:10]"
    assert hub.definitions() == {"lm-eval": version("lm_eval")} and hub.reads() == {}
    own = config("gsm8k")
    assert [own.reported("gsm8k", form, 5) for form in ("strict", "flexible")] == ["gsm8k@strict", "gsm8k@flexible"]
    assert own.reads() == {"test": ("gsm8k", "test"), "train": ("gsm8k", "train")} and own.definitions() == {}


def test_a_definition_of_lm_eval_on_our_rows(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`task.builtin=true task.dataset=piqa`: the whole index is replaced by one folder here, since it takes seconds."""
    import lm_eval.tasks

    place = str(Path(lm_eval.__file__).parent / "tasks" / "piqa")
    manager = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda: manager(include_path=place, include_defaults=False))
    whole = LmEval(config("piqa", builtin=True, limit=3), folder)
    assert len(whole.tasks["piqa"].eval_docs) == 3 and whole.parts()[0].protocol().endswith("/piqa@0shot[:3]")
    with pytest.raises(UserError, match=r"task\.task=piqqa is no task of lm-eval .*; did you mean piqa\?"):
        _load(config("piqqa", builtin=True, shots=0), None)


def test_only_our_folder_is_indexed() -> None:
    assert _manager(builtin=False).all_tasks == sorted(OWN)
    assert {path.suffix for path in FOLDER.iterdir() if path.is_file()} <= {".yaml", ".yml", ".py"}  # what pyproject puts in the wheel
