"""From YAML to the typed cell: the registry's torch-free half, recipes with their origins, types, compatibility."""

import subprocess
import sys
from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from harness import compat, recipes, registry
from harness.cli import register_sweeps, run, sentence
from harness.recipes import parse
from harness.resolve import resolve
from harness.typed import build
from harness.usage import options
from methods.spec import UserError, choice

CONF = Path(__file__).resolve().parents[2] / "conf"
TINY = sorted(name for name in options("model") if name.startswith("tiny_"))


def composed(*overrides: str) -> DictConfig:
    """The configuration that these overrides compose."""
    register_sweeps()
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return hydra.compose("config", overrides=list(overrides))


@pytest.mark.parametrize("slug", registry.files())
def test_a_spec_read_from_the_syntax_tree_equals_the_imported_class(slug: str) -> None:
    spec, real = registry.load_spec(slug), registry.method_class(slug)
    assert spec.traits == real.traits
    assert [(f.name, f.type) for f in fields(spec.config)] == [(f.name, f.type) for f in fields(real.Config)]


@pytest.mark.parametrize("slug", registry.files())
def test_a_method_s_yaml_holds_exactly_the_keys_of_its_config(slug: str) -> None:
    method = composed(f"method={slug}").method
    assert set(method) - {"name", "recipes"} == {f.name for f in fields(registry.load_spec(slug).config)}
    assert method.name == slug


def test_every_method_has_a_yaml_and_every_yaml_a_method() -> None:
    chains = {name for name in options("method") if OmegaConf.load(CONF / "method" / f"{name}.yaml").name == registry.CHAIN}
    assert set(options("method")) - chains == set(registry.files()) and registry.CHAIN in chains


def test_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"method=ful_ft is unknown; did you mean full_ft\?"):
        registry.load_spec("ful_ft")


MATCHERS = parse(
    [
        {"when": {}, "origin": "default", "values": {"lr": 1, "batch": 32}},
        {"when": {"task": "glue/*"}, "origin": "tuned", "values": {"lr": 2}},
        {"when": {"task": "glue/sst2"}, "origin": "paper", "values": {"lr": 3}},
        {"when": {"task": "glue/*", "model": "roberta_*"}, "origin": "paper", "values": {"lr": 4}},
        {"when": {"task": "glue/sst2", "budget": "paper"}, "origin": "paper", "values": {"lr": 5}},
        {"when": {"task": "glue/sst*"}, "origin": "tuned", "values": {"lr": 6, "epochs": 9}},
    ],
    "a test",
)


@pytest.mark.parametrize(
    ("task", "model", "budget", "lr", "origin"),
    [
        ("demo/sst2", "minilm", "short", 1, "default"),
        ("glue/rte", "minilm", "short", 2, "tuned"),
        ("glue/sst2", "minilm", "short", 3, "paper"),  # exact beats the later glob glue/sst*
        ("glue/rte", "roberta_base", "short", 4, "paper"),  # two globs beat one
        ("glue/sst2", "roberta_base", "short", 4, "paper"),  # two globs beat one exact key
        ("glue/sst2", "roberta_base", "paper", 5, "paper"),  # of two keys each, the more exact
        ("glue/sst3", "minilm", "short", 6, "tuned"),  # of two globs, the later
    ],
)
def test_the_most_specific_matcher_wins_per_value(task: str, model: str, budget: str, lr: int, origin: str) -> None:
    values, origins = recipes.resolve(MATCHERS, {"task": task, "model": model, "budget": budget}, {})
    assert (values["lr"], origins["lr"]) == (lr, origin)
    assert (values["batch"], origins["batch"]) == (32, "default")


def test_a_typed_recipe_value_overrides_and_says_so() -> None:
    names = {"task": "glue/sst2", "model": "minilm", "budget": "short"}
    values, origins = recipes.resolve(MATCHERS, names, {"lr": 7, "batch": None})
    assert (values["lr"], origins["lr"], values["batch"], origins["batch"]) == (7, "override", 32, "default")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"when": {"tsk": "x"}, "origin": "paper"}, r"when\.tsk is unknown; did you mean task\?"),
        ({"when": {}, "origin": "paper", "values": {"learning_rate": 1}}, r"values\.learning_rate is unknown"),
        ({"when": {}, "origin": "blog", "values": {}}, "origin=blog is not allowed"),
        ({"if": {}, "origin": "paper"}, "the recipe key if is unknown"),
    ],
)
def test_a_wrong_matcher_is_refused(entry: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse([entry], "conf/method/x.yaml")


def test_the_bottom_recipe_has_every_value_but_the_learning_rate() -> None:
    values, origins = recipes.resolve(recipes.base(), {"task": "t", "model": "m", "budget": "b"}, {})
    assert set(values) == set(recipes.VALUES) - {"lr"}
    assert set(origins.values()) == {"default"}


def test_resolve_gives_the_typed_cell() -> None:
    resolved = resolve(composed("method=full_ft", "model=tiny_bert", "task=glue/rte", "recipe.lr=3", "seed=7", "budget=smoke"))
    cell = resolved.cell
    assert (cell.method, cell.model.name, cell.task.name, cell.seed, cell.budget.examples) == ("full_ft", "tiny_bert", "glue/rte", 7, 64)
    assert (cell.recipe.lr, cell.origins["lr"], cell.recipe.batch) == (3.0, "override", 32)
    assert isinstance(cell.recipe.lr, float)
    assert resolved.data_dir is None


def test_a_cell_that_does_not_train_needs_no_learning_rate() -> None:
    resolved = resolve(composed("method=none", "model=tiny_llama", "task=wikitext2", "task.context=64"))
    assert resolved.cell.recipe.lr == 0.0
    assert resolved.cell.origins == {}


def test_a_missing_learning_rate_names_the_method_and_the_cell() -> None:
    cfg = composed("method=full_ft", "model=tiny_bert", "task=glue/rte")
    cfg.method.recipes = []
    with pytest.raises(UserError, match=r"full_ft has no learning rate for task glue/rte, model tiny_bert, budget short"):
        resolve(cfg)


@dataclass
class Example:
    """A block with every kind of field."""

    count: int
    share: float
    names: list[str]
    limit: int | None
    rule: str

    def __post_init__(self) -> None:
        choice("x.rule", self.rule, ("a", "b"))


GOOD = {"count": 2, "share": 1, "names": ["q"], "limit": None, "rule": "a"}


def test_values_become_the_declared_types() -> None:
    block = build(Example, GOOD | {"share": "1e-3", "count": "4"}, "x")
    assert (block.share, block.count, block.names, block.limit) == (0.001, 4, ["q"], None)
    assert isinstance(block.names, list)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 1.5}, r"x\.count=1\.5 is not allowed; allowed: an integer$"),
        ({"count": True}, r"x\.count=true is not allowed"),
        ({"limit": "ten"}, r"x\.limit=ten is not allowed; allowed: an integer or null$"),
        ({"share": float("inf")}, r"x\.share=inf is not allowed; allowed: a finite number$"),
        ({"share": "nan"}, r"x\.share=nan is not allowed"),
        ({"names": "q"}, r"x\.names=q is not allowed; allowed: a list \[a,b\]"),
        ({"rule": "c"}, r"x\.rule=c is not allowed; allowed: a, b"),
        ({"cuont": 1}, r"x\.cuont is unknown; did you mean x\.count\?"),
    ],
)
def test_wrong_values_are_refused_by_name(change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(Example, GOOD | change, "x")


def test_a_missing_key_is_named_unless_it_has_a_default() -> None:
    with pytest.raises(UserError, match=r"x\.rule is missing"):
        build(Example, {key: value for key, value in GOOD.items() if key != "rule"}, "x")
    later = make_dataclass("Later", [("old", int), ("new", int, 5)])
    assert build(later, {"old": 1}, "x").new == 5


@pytest.mark.parametrize("name", TINY)
def test_what_the_yaml_says_of_biases_experts_and_classifiers_agrees_with_the_modules(name: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig, AutoModel

    model = resolve(composed("method=full_ft", f"model={name}", "task=glue/sst2")).cell.model
    with torch.device("meta"):
        backbone = AutoModel.from_config(AutoConfig.for_model(**model.architecture))
    names = [n for n, _ in backbone.named_parameters() if "norm" not in n.lower() and "ln_" not in n]
    assert any(n.endswith(("bias", "bias_k")) for n in names) == model.biases
    assert any("experts" in n for n in names) == compat.is_moe(model)
    assert (type(backbone.config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING) == model.classifier


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("method=none", "model=tiny_llama", "task=glue/sst2"), "the task needs a trained head"),
        (("method=full_ft", "model=tiny_llama", "task=commonsense/piqa"), "has no training form"),
        (("method=full_ft", "model=tiny_llama", "task=wikitext2", "task.context=64"), "has no training form"),
        (("method=bitfit", "model=tiny_llama", "task=glue/sst2"), "bitfit needs bias parameters and tiny_llama has none"),
        (("method=none", "model=tiny_llama", "task=wikitext2", "task.context=256"), "task.context=256 is longer than tiny_llama takes"),
        (("method=magnitude", "method.retrain=false", "model=minilm", "task=glue/sst2"), "the task needs a trained head"),
        (("method=magnitude", "method.retrain=false", "model=tiny_bert", "task=commonsense/piqa"), "needs a language model"),
        (("method=none", "model=tiny_llama", "task=wikitext2", "task.context=64"), None),
        (("method=bitfit", "model=tiny_qwen2", "task=glue/sst2"), None),
        (("method=full_ft", "model=minilm", "task=glue/sst2"), None),
    ],
)
def test_impossible_cells_have_a_reason_and_possible_ones_none(overrides: tuple[str, ...], reason: str | None) -> None:
    found = compat.incompatible(resolve(composed(*overrides)))
    assert found is None if reason is None else reason in found


def test_family_and_expert_traits_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = resolve(composed("method=full_ft", "model=tiny_mixtral", "task=glue/sst2"))
    resolved.traits = replace(resolved.traits, families=("encoder",), moe=False)
    assert compat.incompatible(resolved) == "full_ft works on encoder models and tiny_mixtral is of family decoder"
    resolved.traits = replace(resolved.traits, families=("decoder",))
    assert "does not work on fused experts" in compat.incompatible(resolved)


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["method=lra"], ["method=full_ft", "data_dir=nowhere"]])
def test_the_command_line_answers_without_torch(arguments: list[str]) -> None:
    script = (
        "import sys; from harness.cli import run; run(sys.argv[1:]);"
        "bad = [m for m in ('torch', 'transformers', 'datasets', 'pandas', 'wandb') if m in sys.modules]; sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_sentence_is_one_line() -> None:
    assert sentence(UserError("first\nsecond")) == "first"


def test_help_names_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    for name in (*registry.files(), "minilm", "glue/sst2", "smoke", "quickstart"):
        assert name in out
