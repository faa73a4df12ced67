"""Where q, k and v lie in a fused map: seen from what the attention of the real architectures does with its rows."""

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from methods.fused import fused_rows
from methods.maths.rows import Rows
from methods.roles import FAMILIES, prunable, role_names, weight_is_transposed
from tests.methods.fakes import build, inputs


def test_split_and_join_are_inverse_and_rows_keep_their_order() -> None:
    whole = torch.arange(12 * 2).view(12, 2)
    assert Rows().split(whole) is whole and Rows().join(whole) is whole
    blocks, heads = Rows(3, 1), Rows(3, 2)
    assert torch.equal(blocks.split(whole)[1], whole[4:8])
    assert heads.split(whole)[1, :, 0].tolist() == [4, 6, 16, 18]
    for rows in (blocks, heads):
        assert torch.equal(rows.join(rows.split(whole)), whole)
        assert torch.equal(rows.split(whole[:, 0]), rows.split(whole)[..., 0])


def attended(model: nn.Module, part: int) -> list[Tensor]:
    """What enters the output map of every layer when rows of one projection are zero, weight and bias."""
    seen: list[Tensor] = []
    for name in role_names(model, ["o"]):
        model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    for name, rows in fused_rows(model).items():
        module = model.get_submodule(name)
        with torch.no_grad():
            for tensor in (module.weight.mT if weight_is_transposed(module) else module.weight, module.bias):
                split = rows.split(tensor).clone()
                split[part] = 0
                tensor.copy_(rows.join(split))
    model(**inputs())
    return seen


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_neox"])
def test_without_v_nothing_is_attended_to(name: str) -> None:
    outputs = attended(build(name, classify=False), 2)
    assert len(outputs) == 2 and not any(output.any() for output in outputs)


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_neox"])
def test_without_q_or_k_attention_is_the_mean_of_what_came_before(name: str) -> None:
    """Scores are 0 everywhere, so token t gets the mean of v_0 .. v_t; v itself is untouched."""
    first = [attended(build(name, classify=False), part)[0] for part in (0, 1)]
    whole = build(name, classify=False)
    (fused_name, rows), *_ = fused_rows(whole).items()
    seen: list[Tensor] = []
    whole.get_submodule(fused_name).register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    whole(**inputs())
    v = rows.split(seen[0].movedim(-1, 0))[2].movedim(0, -1)
    means = v.cumsum(1) / torch.arange(1, v.shape[1] + 1)[:, None]
    length = int(inputs()["attention_mask"][0].sum())  # tokens of padding see other things
    for output in first:
        assert length > 2 and torch.allclose(output[0, :length], means[0, :length], atol=1e-6)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_fused_family_of_the_roles_table_is_known(model_type: str) -> None:
    if "qkv" in FAMILIES[model_type].maps:
        config = AutoConfig.for_model(model_type, hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
        with torch.device("meta"):
            assert len(fused_rows(AutoModelForCausalLM.from_config(config))) == 1


def test_families_with_three_maps_have_no_fused_one() -> None:
    model = build("tiny_llama")
    assert fused_rows(model) == {} and len(prunable(model)) == 14
