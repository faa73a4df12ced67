"""Sampling with seeds, and the resampling task on a tiny model and on made-up samples."""

import numpy as np
import pytest
import torch

from harness.typed import build as typed
from methods.spec import UserError
from tasks import resample
from tasks.base import EvalOptions
from tasks.generation import Decoding
from tasks.hidden import mean_states
from tasks.resample import Resample, same, seed_of
from tasks.resampling import outcomes, pass_at_k
from tasks.sampling import Drawn, Perturbed, sample
from tasks.sources import Sources
from tasks.spec import ResampleConfig, trains

VALUES = {
    "name": "resample/toy", "kind": "resample", "dataset": "toy/arithmetic-1", "split": "test", "attempts": 2, "samples": 4,
    "temperature": 0.8, "verifiers": ["exact", "format", "agreement:2:0.5"], "prompt": "line", "shots": 0, "answer": "marked",
    "new_tokens": 6, "sampling_seed": 0, "redundancy": True, "limit": 3, "version": 1,
}  # fmt: skip


def config(**changes) -> ResampleConfig:
    return typed(ResampleConfig, VALUES | changes, "task")


@pytest.fixture
def made(tmp_path):
    return lambda **changes: Resample(config(**changes), Sources(None, tmp_path, offline=True))


@pytest.fixture
def llama(tiny):
    return tiny("llama", "CausalLM").eval()


PROMPTS = [[1, 50, 60, 70], [1, 80], [1, 90, 91, 92, 93, 94, 95]]


def test_perturbed_scores_are_samples_of_the_softmax():
    """Frequencies of 20,000 draws against softmax(z / T): a chi-square test, and the kept log-probabilities at temperature 1."""
    from scipy.stats import chisquare

    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5]])
    noise = Perturbed([3], 0.7)
    drawn = [int(noise(torch.zeros(1, 1), scores).argmax()) for _ in range(20_000)]
    expected = (scores / 0.7).softmax(-1)[0].double() * 20_000
    assert chisquare(np.bincount(drawn, minlength=5), (expected / expected.sum() * 20_000).numpy()).pvalue > 0.01
    assert noise.logprobs[7].item() == pytest.approx(scores.log_softmax(-1)[0, drawn[7]].item(), abs=1e-6)


def test_a_sample_depends_on_its_seed_alone(llama, byte_tokenizer):
    def draw(prompts, seeds, batch=8):
        return sample(llama, byte_tokenizer, prompts, seeds, Decoding(12), 1.0, EvalOptions(batch=batch))

    together = draw(PROMPTS, [1, 2, 3])
    alone = [draw([prompt], [seed])[0] for prompt, seed in zip(PROMPTS, (1, 2, 3), strict=True)]
    assert [d.ids for d in together] == [d.ids for d in alone] == [d.ids for d in draw(PROMPTS, [1, 2, 3], batch=1)]
    assert [d.logprob for d in together] == pytest.approx([d.logprob for d in alone], abs=1e-5)
    assert [d.ids for d in draw(PROMPTS[::-1], [3, 2, 1])] == [d.ids for d in together[::-1]]
    assert len({tuple(d.ids) for d in draw([PROMPTS[0]] * 5, range(5))}) == 5


def test_the_logprob_is_that_of_a_direct_forward_pass(llama, byte_tokenizer):
    (drawn,) = sample(llama, byte_tokenizer, PROMPTS[:1], [5], Decoding(10), 0.9, EvalOptions())
    ids = torch.tensor([PROMPTS[0] + drawn.ids])
    with torch.no_grad():
        steps = llama(ids).logits.log_softmax(-1)[0, len(PROMPTS[0]) - 1 : -1]
    direct = steps.gather(1, torch.tensor(drawn.ids)[:, None]).mean().item()
    assert len(drawn.ids) == 10 and drawn.logprob == pytest.approx(direct, abs=1e-4)


def test_a_vanishing_temperature_is_greedy(llama, byte_tokenizer):
    from tasks.generation import complete

    greedy = complete(llama, byte_tokenizer, PROMPTS, Decoding(8), EvalOptions())
    cold = sample(llama, byte_tokenizer, PROMPTS, [1, 2, 3], Decoding(8), 1e-4, EvalOptions())
    assert [d.ids for d in cold] == [c.ids for c in greedy]


def test_hidden_states_do_not_depend_on_padding(llama, byte_tokenizer):
    texts = ["short", "a much longer sentence than the other one"]
    both = mean_states(llama, byte_tokenizer, texts, EvalOptions())
    for text, vector in zip(texts, both, strict=True):
        ids = torch.tensor([byte_tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            direct = llama(ids, output_hidden_states=True).hidden_states[1][0].mean(0)
        assert vector == pytest.approx(direct.numpy(), abs=1e-5)
    turned = mean_states(llama, byte_tokenizer, texts[::-1], EvalOptions(batch=1))[::-1]
    assert all(a == pytest.approx(b, abs=1e-5) for a, b in zip(both, turned, strict=True))


def test_the_task_records_every_sample(made, llama, byte_tokenizer):
    found = made().evaluate(llama, byte_tokenizer, "evaluation", EvalOptions())
    columns = found.predictions
    assert found.primary == "accuracy" and len(columns["example"]) == 3
    for name in ("correct", "completions", "completion_tokens", "logprobs", "accepted/format", "answers"):
        assert [len(row) for row in columns[name]] == [4, 4, 4]
    assert [len(row) for row in columns["votes"]] == [2, 2, 2] and len({text for row in columns["completions"] for text in row}) > 6
    again = made().evaluate(llama, byte_tokenizer, "evaluation", EvalOptions(batch=2))
    assert again.predictions["completions"] == columns["completions"]
    fewer = made(samples=3, verifiers=["exact"]).evaluate(llama, byte_tokenizer, "evaluation", EvalOptions())
    assert fewer.predictions["completions"] == [row[:3] for row in columns["completions"]]
    other = made(sampling_seed=1).evaluate(llama, byte_tokenizer, "evaluation", EvalOptions())
    assert other.predictions["completions"] != columns["completions"]


@pytest.fixture
def scripted(monkeypatch):
    """The samples of three questions, 4 candidates and 2 votes each, in place of a model's."""

    def use(answers):
        def fake(model, tokenizer, prompts, seeds, decoding, temperature, options):
            return [Drawn([7] * 5, f"So it is {a}.\n#### {a}" if a else "nothing", -0.5) for row in answers for a in row]

        monkeypatch.setattr(resample, "sample", fake)

    return use


def test_metrics_are_those_of_the_bits(made, llama, byte_tokenizer, scripted):
    gold = made()._gold()
    rows = [[gold[0], gold[0], "-77", None, gold[0], gold[0]], ["-77", "-77", gold[1], "-77", "-77", "-77"], [None] * 6]
    scripted(rows)
    found = made().evaluate(llama, byte_tokenizer, "evaluation", EvalOptions())
    correct = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=bool)
    assert found.predictions["correct"] == correct.tolist()
    metrics = found.metrics
    assert metrics["accuracy"] == metrics["pass@k"] == pytest.approx(pass_at_k(4, correct.sum(1), 2).mean())
    assert metrics["single"] == pytest.approx(3 / 12) and metrics["invalid"] == pytest.approx(5 / 12)
    form = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)
    assert metrics["accuracy/format"] == pytest.approx(outcomes(correct, form, 2).accuracy()[-1])
    assert metrics["false_positives/format"] == pytest.approx((1 / 3 + 3 / 4) / 2) and metrics["false_positives/exact"] == 0
    assert metrics["accuracy/format"] - 4 * metrics["wrong/format"] == pytest.approx(outcomes(correct, form, 2).reward(4)[-1])
    agreed = [[True, True, False, False], [True, True, False, True], [False] * 4]
    assert found.predictions["accepted/agreement:2:0.5"] == agreed and metrics["best_attempts/agreement:2:0.5/cost8"] == 0
    assert np.mean(found.predictions["score"]) == pytest.approx(metrics["accuracy"])
    assert metrics["redundancy/coverage"] == 1 and metrics["redundancy/erd"] == 0 and metrics["redundancy/undefined_ird"] == 1
    assert "redundancy/ird" not in metrics and found.predictions["erd"][2] == [None] * 4


def test_every_verifier_has_its_own_votes_alone(made, llama, byte_tokenizer, scripted):
    """Three votes are drawn for the second verifier; the first one still asks two: the third one of them would change its verdict."""
    task = made(verifiers=["agreement:2:0.5", "agreement:3:0.6"])
    scripted([["5", "6", "7", "8", "5", "6", "6"]] * 3)
    accepted = task.evaluate(llama, byte_tokenizer, "evaluation", EvalOptions()).predictions
    assert accepted["accepted/agreement:2:0.5"][0] == [True, True, False, False]
    assert accepted["accepted/agreement:3:0.6"][0] == [False, True, False, False]


def test_the_reported_verifier_is_the_first_one(made, llama, byte_tokenizer, scripted):
    task = made(verifiers=["format", "exact"])
    scripted([["-77", "-77", gold, "-77"] for gold in task._gold()])
    found = task.evaluate(llama, byte_tokenizer, "evaluation", EvalOptions())
    assert found.metrics["accuracy"] == pytest.approx(0.25) and found.metrics["accuracy/exact"] == pytest.approx(0.5)
    assert found.predictions["score"] == pytest.approx([0.25] * 3)


def test_prompts_and_ids_name_what_decides(made):
    shown = made(shots=2).prompts()
    rows = made(shots=2).splits()["shots"].data
    assert shown[0].startswith(f"{rows['question'][0]}\n{rows['answer'][0]}\n\n{rows['question'][1]}\n") and shown[0].endswith("\n")
    assert "### Instruction:" in made(prompt="metamath").prompts()[0]
    assert config().protocol() == "toy/arithmetic-1@resample-2of4-exact-t0.8-6-line-marked[:3]"
    full = config(verifiers=["agreement:5:0.4"], shots=5, sampling_seed=3, limit=None).protocol()
    assert full == "toy/arithmetic-1@resample-2of4-agreement:5:0.4-t0.8-6-line-marked-5shot-seed3" and not trains(config())
    with pytest.raises(UserError, match="has no training form"):
        made().encode("train", None)


def test_numbers_are_compared_as_numbers_and_seeds_are_distinct():
    assert same("1,200", "1200") and same("12.0", "12") and same("$5", "5") and not same("12.5", "12") and not same("x", "12")
    seeds = {seed_of(base, question, i) for base in (0, 1) for question in ("a", "b") for i in range(50)}
    assert len(seeds) == 200 and max(seeds) < 2**63


REFUSED = {
    "attempts": ({"attempts": 9}, "task.attempts=9 is more than task.samples=4"),
    "temperature": ({"temperature": 0.0}, "task.temperature=0.0 is out of range"),
    "verifier": ({"verifiers": ["exact", "oracle"]}, "task.verifiers=oracle is not allowed"),
    "twice": ({"verifiers": ["exact", "exact"]}, "give at least one, and none twice"),
    "dataset": ({"dataset": "piqa"}, "task.dataset=piqa has no worked solutions"),
    "answer": ({"answer": "first"}, "task.answer=first is not allowed"),
}


@pytest.mark.parametrize(("changes", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_settings_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence.replace(".", r"\.").replace("[", r"\[")):
        config(**changes)
