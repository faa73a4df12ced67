"""Parameters that join a running phase: what the optimizer and the schedule do with them, and resumes of a model that grew."""

import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import get_scheduler

from harness import checkpoint, guard, optimizers, training
from methods.base import Method
from tests.contract.trial import stopping_after
from tests.harness.test_training import STEPS, model, trainer

WARMUP = 1 / 3


class Grower(Method):
    """Full fine-tuning of a classifier that gets one more trained bias after each of the updates 1, 2 and 3."""

    def __init__(self, net: nn.Module, restart: bool = False) -> None:
        super().__init__(None)
        self.net, self.restart = net, restart
        self.biases = net.classifier.biases = nn.ParameterList()
        net.classifier.register_forward_hook(lambda module, args, out: functools.reduce(torch.add, module.biases, out))

    def grow(self) -> nn.Parameter:
        self.biases.append(nn.Parameter(torch.zeros(2)))
        return self.biases[-1]

    def on_update(self, net: nn.Module, step: int, ctx) -> None:
        if step <= 3:
            new = self.grow()
            ctx.add_parameters([new], net.classifier.bias, restart=self.restart)

    def state_dict(self) -> dict[str, Tensor]:
        return {"grown": torch.tensor(len(self.biases))}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        while len(self.biases) < state["grown"]:
            self.grow()


def host(folder: Path, restart: bool = False) -> training.HostTrainer:
    """A host whose method grows the model."""
    net = model()
    built = trainer(folder, net, Grower(net, restart), warmup=WARMUP, head_lr=2e-3)
    built.ctx.add_parameters = lambda parameters, like, *, restart: built.add_parameters(parameters, like, restart)
    return built


def rates(built: training.HostTrainer) -> list[list[float]]:
    """Learning rates of all groups at each step."""
    seen: list[list[float]] = []
    built.method.on_step = lambda net, step, ctx: seen.append([group["lr"] for group in built.optimizer.param_groups])
    training.run_phase(built)
    return seen


@pytest.mark.parametrize("restart", [False, True], ids=["same schedule", "own schedule"])
@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_resume_of_a_grown_model_is_exact(tmp_path: Path, restart: bool, stop: int) -> None:
    straight = host(tmp_path / "straight", restart)
    expected_rates = rates(straight)
    with stopping_after(stop), pytest.raises(guard.Interrupted):
        training.run_phase(host(tmp_path / "resumed", restart))
    resumed = host(tmp_path / "resumed", restart)
    assert rates(resumed) == expected_rates[stop:]
    assert len(straight.method.biases) == 3
    expected, found = straight.model.state_dict(), resumed.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    states = [optimizers.by_name(h.optimizer.state_dict(), optimizers.names(h.optimizer, h.model)) for h in (straight, resumed)]
    assert [g["params"] for g in states[0]["param_groups"]] == [g["params"] for g in states[1]["param_groups"]]
    for name, values in states[0]["state"].items():
        assert all(torch.equal(value, states[1]["state"][name][key]) for key, value in values.items())


def test_new_parameters_train_from_the_next_step_with_the_options_of_the_group_they_are_like(tmp_path: Path) -> None:
    built = host(tmp_path)
    training.run_phase(built)
    like, *new = built.optimizer.param_groups[-4:]
    assert any(p is built.model.classifier.bias for p in like["params"]) and like["initial_lr"] == 2e-3
    for group, bias in zip(new, built.method.biases, strict=True):
        assert group["params"] == [bias] and bias.abs().max() > 0
        assert {k: v for k, v in group.items() if k != "params"} == {k: v for k, v in like.items() if k != "params"}
    assert [int(built.optimizer.state[bias]["step"]) for bias in built.method.biases] == [STEPS - 1, STEPS - 2, STEPS - 3]


def test_the_schedule_of_new_parameters(tmp_path: Path) -> None:
    """Warmup of 2 steps to 2e-3, then down to 0 after the 6th; a restarted one does the same within the steps that are left."""
    whole = [0, 1e-3, 2e-3, 1.5e-3, 1e-3, 0.5e-3]
    old = [line[-1] for line in rates(host(tmp_path / "same"))]
    assert old == pytest.approx(whole)
    seen = rates(host(tmp_path / "own", restart=True))
    assert [line[-1] for line in seen[3:]] == pytest.approx([0, 1e-3, 2e-3])  # born after 3 of 6 updates
    assert [line[-2] for line in seen[3:]] == pytest.approx([1e-3, 2e-3, 1e-3])  # after 2
    assert [line[3] for line in seen] == pytest.approx(whole)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_a_restarted_schedule_is_that_of_a_shorter_phase(tmp_path: Path, schedule: str) -> None:
    def built(steps: int):
        optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-2)
        name = training.SCHEDULERS[schedule]
        return optimizer, get_scheduler(name, optimizer, 2, steps)

    optimizer, scheduler = built(10)
    _, short = built(6)
    for _ in range(3):
        optimizer.step(), scheduler.step()
    new = nn.Parameter(torch.zeros(1))
    optimizers.join(optimizer, scheduler, [new], optimizer.param_groups[0]["params"][0], restart=True)
    for _ in range(6):
        optimizer.step(), scheduler.step()
        assert optimizer.param_groups[1]["lr"] == pytest.approx(short.get_last_lr()[0])
        short.optimizer.step(), short.step()


def test_a_state_fits_whatever_the_order_and_the_groups(tmp_path: Path) -> None:
    """The state of one group for all goes back into an optimizer of two groups in the other order."""
    net, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.3)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    checkpoint.save_optimizer(tmp_path, optimizers.by_name(optimizer.state_dict(), optimizers.names(optimizer, net)))
    other = torch.optim.AdamW([{"params": [twin.bias], "lr": 0.1}, {"params": [twin.weight]}])
    other.load_state_dict(optimizers.regroup(other, twin, checkpoint.read_optimizer(tmp_path)))
    assert [group["lr"] for group in other.param_groups] == [0.3]
    assert all(
        torch.equal(other.state[getattr(twin, n)]["exp_avg"], optimizer.state[getattr(net, n)]["exp_avg"]) for n in ("weight", "bias")
    )


def test_what_cannot_join_or_come_back_is_an_error(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD([net.weight], lr=0.1)
    scheduler = get_scheduler("linear", optimizer, 0, 3)
    with pytest.raises(ValueError, match="does not hold `like`"):
        optimizers.join(optimizer, scheduler, [nn.Parameter(torch.zeros(1))], net.bias, restart=False)
    state = optimizers.by_name(optimizer.state_dict(), optimizers.names(optimizer, net))
    with pytest.raises(RuntimeError, match=r"differ in \['bias'\]"):
        optimizers.regroup(torch.optim.SGD(net.parameters(), lr=0.1), net, state)
