"""Every task file builds: its keys are the configuration's fields, its metric and dataset exist."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from tasks.registry import TASKS, build
from tasks.spec import KINDS
from tasks.templates import TEMPLATES

CONF = Path(__file__).resolve().parents[2] / "conf" / "task"
FILES = sorted(CONF.rglob("*.yaml"))
NAMES = [path.relative_to(CONF).with_suffix("").as_posix() for path in FILES]


def test_the_nine_glue_and_eight_commonsense_tasks_are_there():
    assert {f"glue/{n}" for n in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")} <= set(NAMES)
    assert {f"commonsense/{n}" for n in TEMPLATES if not n.startswith("toy/")} <= set(NAMES) and len(TEMPLATES) == 9
    classes = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli")
    assert {f"{form}/{n}" for form in ("cloze", "prompt", "text") for n in classes} <= set(NAMES)
    assert {"text/stsb", "toy/arithmetic", "toy/choice", "toy/corpus", "toy/entailment", "toy/sentiment", "toy/similarity"} <= set(NAMES)
    assert {"demo/mrpc", "demo/sst2", "wikitext2"} <= set(NAMES)


@pytest.mark.parametrize(("name", "path"), list(zip(NAMES, FILES, strict=True)), ids=NAMES)
def test_a_task_file_builds(name, path):
    values = yaml.safe_load(path.read_text())
    kind = KINDS[values["kind"]]
    assert set(values) == {field.name for field in fields(kind)}
    assert values["name"] == name
    assert type(build(kind(**values), None)) is TASKS[values["kind"]]


def test_protocol_ids_are_distinct():
    configs = [(values := yaml.safe_load(path.read_text())) and KINDS[values["kind"]](**values) for path in FILES]
    assert len({config.protocol() for config in configs}) == len(FILES)
