"""SquareHead (Kurtic et al. 2023, arXiv 2310.06927, Section 3):
L = c_ce CE + c_kl KL + c_sq sum_l MSE(h_l^S, h_l^T) / (MSE(h_l^T, 0) + eps).

The teacher T is the model fine-tuned densely for a share of the budget, the student S the same model pruned once (`criterion`) and
trained under its mask with L for the rest. h_l: hidden states of layers 1 to L over attended tokens. KL covers the tokens with labels.
Both means of a ratio are over the whole batch, which several processes would cut, so one trains. The paper prunes from 40 to 80 % in
several such runs, each student pruned further: a chain of these.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from methods.base import Batch, Context
from methods.maths.distillation import softened_kl, squarehead
from methods.prune.criteria import prune
from methods.prune.masked import MaskedMethod
from methods.spec import Traits, UserError, choice, mask_shape, number

UNLABELLED = -100


class Squarehead(MaskedMethod):
    """All kept weights train; the teacher's forward pass joins every step."""

    @dataclass
    class Config:
        """`criterion`: of the mask. `teacher`: share of the budget that the dense model trains for; 0 = it is finished already.

        `ce`, `kl`, `square`: weights of the three losses. `temperature`: of KL.
        """

        sparsity: float
        pattern: str
        criterion: str
        teacher: float
        ce: float
        kl: float
        square: float
        temperature: float

        def __post_init__(self) -> None:
            mask_shape(self.sparsity, "layer", self.pattern)
            choice("method.criterion", self.criterion, ("magnitude", "random", "wanda", "sparsegpt", "none"))
            number("method.teacher", self.teacher, 0, 1, open_high=True)
            for key in ("ce", "kl", "square"):
                number(f"method.{key}", getattr(self, key), 0)
            number("method.temperature", self.temperature, 0, open_low=True)
            if not (self.ce or self.kl or self.square):
                raise UserError("method.ce, kl and square are all 0, so there is no loss; give one of them a weight")

        @property
        def retrain(self) -> bool:
            """Always: it is what the technique is about."""
            return True

        def adjust(self, traits: Traits) -> Traits:
            """What the mask asks for."""
            looks = self.criterion in ("wanda", "sparsegpt")
            drawn = ("mask",) if self.criterion == "random" else ()
            return replace(traits, calibration=looks, moe=traits.moe and not looks, randomness=drawn)

    traits = Traits(sparse=True, distributed=())

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The loaded model: the teacher comes first, so pruning is a part of `fit`."""
        self.teacher: nn.Module | None = None
        return model

    def masks(self, model: nn.Module, ctx: Context) -> Iterator[tuple[str, Tensor]]:
        """(parameter name, mask)."""
        yield from prune(model, ctx, self.config.criterion, self.config.sparsity, self.config.pattern).items()

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Fine-tune the teacher, keep a frozen copy of it, prune, train the student."""
        if self.config.teacher:
            model = ctx.train(model, "teacher", share=self.config.teacher, select=False)
        teacher = copy.deepcopy(model).requires_grad_(False).eval()
        teacher.config.use_cache = False
        model = super().prepare(model, ctx)
        self.teacher = teacher
        return ctx.train(model, share=1 - self.config.teacher)

    def loss(self, model: nn.Module, batch: Batch, ctx: Context) -> Tensor:
        """The task's loss while the teacher trains, L afterwards."""
        if self.teacher is None:
            return super().loss(model, batch, ctx)
        c = self.config
        student = model(**batch, output_hidden_states=True)
        with torch.no_grad():
            teacher = self.teacher(**batch, output_hidden_states=True)
        loss = c.ce * student.loss
        if c.square:
            loss = loss + c.square * squarehead(student.hidden_states[1:], teacher.hidden_states[1:], batch["attention_mask"])
        if c.kl:
            loss = loss + c.kl * softened_kl(*predictions(student.logits, teacher.logits, batch["labels"]), c.temperature)
        return loss


def predictions(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of both logits (rows, classes) that are trained: of a language model those that predict a label.

    `UserError` for a regression.
    """
    if student.shape[-1] == 1:
        raise UserError("method.kl compares class probabilities and the task is a regression; give method.kl=0")
    if student.ndim == 2:
        return student, teacher
    predicts = labels[:, 1:] != UNLABELLED
    return student[:, :-1][predicts], teacher[:, :-1][predicts]
