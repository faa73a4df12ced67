"""The training host on a tiny model: resume from damaged checkpoints, hooks in order, gradients before clipping."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from harness import guard, training
from harness.batching import IGNORED, collator
from harness.config import Recipe
from harness.seeding import seed_everything
from harness.tiny import byte_tokenizer
from methods.base import Method

STEPS = 6
TOKENIZER = byte_tokenizer()
ROWS = [dict(TOKENIZER(f"row number {i}")) | {"labels": i % 2} for i in range(40)]


class Quiet(training.Listener):
    """Keeps the learning curve in memory."""

    def __init__(self) -> None:
        self.lines: list[dict] = []

    def history(self, entry: dict) -> None:
        self.lines.append(entry)


class Spy(Method):
    """Full fine-tuning that notes which hook ran with which step, and the gradient norm that it saw."""

    def __init__(self) -> None:
        super().__init__(None)
        self.calls: list[tuple[str, int]] = []
        self.norms: list[float] = []

    def on_step(self, model, step, ctx):
        self.calls.append(("step", step))

    def on_gradients(self, model, step, ctx):
        self.calls.append(("gradients", step))
        self.norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item())

    def on_update(self, model, step, ctx):
        self.calls.append(("update", step))

    def on_epoch(self, model, epoch, ctx):
        self.calls.append(("epoch", epoch))


def model() -> nn.Module:
    """A tiny BERT, always the same."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=264, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    return BertForSequenceClassification(config)


def trainer(folder: Path, net: nn.Module, method: Method | None = None, micro: int = 8, **changes) -> training.HostTrainer:
    """A host for `STEPS` steps of 8 rows, with a checkpoint every 2."""
    values = {"lr": 1e-3, "head_lr": None, "batch": 8, "epochs": 1.0, "schedule": "linear", "warmup": 0.1, "weight_decay": 0.01}
    recipe = Recipe(**(values | {"max_grad_norm": 0.5, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8} | changes))
    ctx = SimpleNamespace(settings=training.settings_of(recipe))
    plan = training.PhasePlan("main", folder, STEPS, recipe, micro, "cpu", False, 3, 2, ())
    seed_everything(0, "train")
    return training.HostTrainer(net, method or Method(None), ctx, plan, ROWS, collator(TOKENIZER), Quiet())


def final_weights(folder: Path, **kwargs) -> dict[str, torch.Tensor]:
    """Weights after a whole phase in `folder`."""
    net = model()
    training.run_phase(trainer(folder, net, **kwargs))
    return net.state_dict()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return final_weights(tmp_path_factory.mktemp("straight"))


FILES = ["weights.safetensors", "method.safetensors", "optimizer.safetensors", "optimizer.json", "scheduler.json",
         "rng.safetensors", "rng.json", "progress.json", "trainer_state.json", "COMPLETE"]  # fmt: skip


@pytest.mark.parametrize("victim", FILES)
def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path: Path, uninterrupted, victim: str) -> None:
    net = model()
    final_weights(tmp_path)
    newest = tmp_path / "checkpoint-4"
    assert training.resumable(tmp_path) == newest
    data = (newest / victim).read_bytes()
    (newest / victim).write_bytes(data[: len(data) // 2])
    assert training.resumable(tmp_path) == tmp_path / "checkpoint-2"
    net = model()
    host = trainer(tmp_path, net)
    training.run_phase(host)
    assert all(torch.equal(net.state_dict()[k], uninterrupted[k]) for k in uninterrupted)
    assert host.listener.lines[0]["step"] == 3


def test_hooks_run_in_order_once_per_step(tmp_path: Path) -> None:
    spy = Spy()
    training.run_phase(trainer(tmp_path, model(), spy, micro=4))
    steps = [call for call in spy.calls if call[0] != "epoch"]
    assert steps == [c for i in range(STEPS) for c in (("step", i), ("gradients", i), ("update", i + 1))]
    assert ("epoch", 1) in spy.calls


def test_gradients_are_seen_before_clipping(tmp_path: Path) -> None:
    spy = Spy()
    host = trainer(tmp_path, model(), spy, max_grad_norm=1e-3)
    training.run_phase(host)
    assert min(spy.norms) > 1e-2
    assert [line["grad_norm"] for line in host.listener.lines] == pytest.approx(spy.norms, rel=1e-5)


def test_micro_batches_give_the_same_step_as_the_whole_batch(tmp_path: Path) -> None:
    nets = [model(), model()]
    for net, micro in zip(nets, (8, 2), strict=True):
        net.config.hidden_dropout_prob = 0.0
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for layer in net.bert.encoder.layer:
            layer.attention.self.dropout.p = 0.0
        training.run_phase(trainer(tmp_path / str(micro), net, micro=micro))
    whole, parts = (n.classifier.weight for n in nets)
    assert torch.allclose(whole, parts, atol=1e-5)
    assert not torch.allclose(whole, model().classifier.weight, atol=1e-5)


def test_a_new_parameter_that_the_optimizer_does_not_hold_is_an_error(tmp_path: Path) -> None:
    class Surgeon(Method):
        def on_update(self, model, step, ctx):
            model.classifier.extra = nn.Parameter(torch.zeros(1))

    with pytest.raises(RuntimeError, match=r"optimizer misses \['classifier.extra'\]"):
        training.run_phase(trainer(tmp_path, model(), Surgeon(None)))


def test_an_infinite_loss_is_divergence_before_anything_is_saved(tmp_path: Path) -> None:
    class Exploding(Method):
        def loss(self, model, batch, ctx):
            return super().loss(model, batch, ctx) * float("inf")

    with pytest.raises(guard.Diverged, match="loss is"):
        training.run_phase(trainer(tmp_path, model(), Exploding(None)))
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_learning_rate_follows_the_recipe(tmp_path: Path) -> None:
    host = trainer(tmp_path, model(), warmup=1 / 3, max_grad_norm=0.0)
    training.run_phase(host)
    rates = [line["learning_rate"] for line in host.listener.lines]
    assert rates == pytest.approx([0, 5e-4, 1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_token_labels_are_padded_with_the_ignored_index() -> None:
    rows = [{"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [5, 6]}, {"input_ids": [7], "attention_mask": [1], "labels": [7]}]
    assert collator(TOKENIZER)(rows)["labels"].tolist() == [[5, 6], [7, IGNORED]]


def test_golden_losses(tmp_path: Path) -> None:
    """Bump `harness.record.NUMERICS` and these numbers together when a change of the harness moves losses."""
    host = trainer(tmp_path, model())
    training.run_phase(host)
    golden = json.loads((Path(__file__).parent / "golden_losses.json").read_text())
    from harness.record import NUMERICS

    assert golden["numerics"] == NUMERICS
    assert [line["loss"] for line in host.listener.lines] == pytest.approx(golden["losses"], abs=2e-4)
