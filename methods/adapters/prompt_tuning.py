"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691, Section 2): Pr(y | [P; X]), P (p, d) before the embedded input, trained alone.

P starts at the embeddings of random tokens (`vocab`) or at N(0, 1) (`random`), and carries no weight decay. The model reads p
placeholder ids whose embeddings are replaced. An implementation of its own: PEFT (equal in the tests where rows have no padding) passes
embeddings in the place of ids, upon which decoders with a task head read right-padded rows at a pad, and it leaves the logits of P in the
output of language models. Encoders pool the first position, which is P's, as with PEFT.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapters.peft_base import split_groups
from methods.base import Context, Method, TrainSettings, freeze_backbone, parameter_groups
from methods.maths.draws import normal
from methods.roles import embeddings, head_names
from methods.spec import Traits, UserError, choice, number

IGNORED = -100
"""The label that a language model's loss leaves out."""
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids")


class PromptTuning(Method):
    """p d trained parameters; the prompt stays beside the stock model."""

    @dataclass
    class Config:
        """`tokens`: p."""

        tokens: int
        init: str

        def __post_init__(self) -> None:
            number("method.tokens", self.tokens, 1)
            choice("method.init", self.init, ("vocab", "random"))

    traits = Traits(randomness=("init",), exact_at_init=False, folds=False)

    def prepare(self, model: nn.Module, ctx: Context) -> "Prompted":
        """Freeze the backbone and put the prompt before it."""
        freeze_backbone(model)
        return Prompted(model, self._start(model.get_input_embeddings(), ctx))

    def groups(self, model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
        """The prompt in a group of its own, without weight decay."""
        return split_groups(model, parameter_groups(model, settings), "soft_prompt", weight_decay=0.0)

    @torch.no_grad()
    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """The prompt rounded to the dtype of the embeddings that it stands beside; all parameters require gradients again."""
        model.soft_prompt.data = model.soft_prompt.to(model.get_input_embeddings().weight.dtype)
        return model.requires_grad_(True)

    def detach(self, model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
        """The stock model and `soft_prompt` (p, d)."""
        return model.released(), {"soft_prompt": model.soft_prompt.detach()}

    def attach(self, model: nn.Module, tensors: dict[str, Tensor]) -> "Prompted":
        """The inverse of `detach`."""
        return Prompted(model, tensors["soft_prompt"].to(model.device))

    @torch.no_grad()
    def _start(self, table: nn.Embedding, ctx: Context) -> Tensor:
        draws, device = ctx.generator("prompt"), table.weight.device
        if self.config.init == "random":
            return normal((self.config.tokens, table.embedding_dim), 1.0, draws, device)
        return table(torch.randint(table.num_embeddings, (self.config.tokens,), generator=draws).to(device)).float()


class Prompted(nn.Module):
    """A transformers model that reads a soft prompt before every row, with the interface and the output shapes of the model inside.

    Rows that leave no room for the prompt among the model's positions lose their last tokens where only a task head reads them;
    a language model refuses them.
    """

    def __init__(self, model: nn.Module, prompt: Tensor) -> None:
        super().__init__()
        self.soft_prompt = nn.Parameter(prompt.clone())
        self.base_model = model
        table = model.get_input_embeddings()
        self._active = False
        self._hook = table.register_forward_hook(self._replace)
        pad = model.config.get_text_config().pad_token_id
        self._placeholder = 1 if pad == 0 else 0
        self._room = _positions(model) - len(prompt)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_model"), name)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **more: Any
    ) -> Any:  # a ModelOutput of transformers
        """Ids (batch, n) -> the output of the model, logits by token for the n tokens alone. With `past_key_values` the prompt was read."""
        if more.get("past_key_values") is not None:
            return self.base_model(input_ids=input_ids, labels=labels, **more)
        length = input_ids.shape[1]
        by_token = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, **more}
        if length > self._room:
            by_token = self._shortened(by_token, length)
        with self._reading():
            out = self.base_model(**{key: self._extended(key, value, input_ids) for key, value in by_token.items()})
        if out.logits.ndim == 3:
            out.logits = out.logits[:, -length:]
        return out

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **more: Any) -> Tensor:
        """Ids (batch, n) -> ids (batch, n + new)."""
        if more.get("past_key_values") is not None:
            raise UserError("prompt_tuning decodes without a cache read beforehand; use greedy decoding (one beam)")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embedded = self.base_model.get_input_embeddings()(input_ids)
        embedded = torch.cat([self._rows(len(input_ids), embedded.dtype), embedded], 1)
        new = self.base_model.generate(inputs_embeds=embedded, attention_mask=self._extended("attention_mask", mask, input_ids), **more)
        return torch.cat([input_ids, new], 1)

    def released(self) -> nn.Module:
        """The model inside, as it was."""
        self._hook.remove()
        return self.base_model

    def _rows(self, batch: int, dtype: torch.dtype) -> Tensor:
        return self.soft_prompt.to(dtype).expand(batch, -1, -1)

    def _replace(self, table: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        """After the embedding of a whole input: the prompt in the place of its placeholders."""
        return torch.cat([self._rows(len(out), out.dtype), out[:, len(self.soft_prompt) :]], 1) if self._active else None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        self._active = True
        try:
            yield
        finally:
            self._active = False

    def _extended(self, key: str, value: Any, ids: Tensor) -> Any:
        """An argument of the model with room for the prompt, where it has one entry a token of `ids`."""
        fill = {"input_ids": self._placeholder, "attention_mask": 1, "token_type_ids": 0, "labels": IGNORED}
        if key not in fill or value is None or value.ndim < 2:
            return value
        return torch.cat([value.new_full((len(ids), len(self.soft_prompt)), fill[key]), value], 1)

    def _shortened(self, arguments: dict[str, Any], length: int) -> dict[str, Any]:
        if not head_names(self.base_model) or self._room < 1:
            raise UserError(
                f"{length} tokens leave no room for the prompt; give rows of at most {self._room} tokens, or fewer method.tokens"
            )
        cut = {key: arguments[key][:, : self._room] for key in PER_TOKEN if arguments.get(key) is not None}
        return arguments | cut


def _positions(model: nn.Module) -> int:
    """The tokens that the model can tell apart by position: its table, less the rows that belong to padding."""
    tables = [table for table in embeddings(model).values() if table is not model.get_input_embeddings()]
    unused = max((table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None), default=0)
    return model.config.get_text_config().max_position_embeddings - unused
