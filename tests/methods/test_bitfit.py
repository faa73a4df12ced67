"""BitFit trains bias vectors and the head, and nothing else; published counts on the meta device."""

import pytest

from methods.roles import head_names
from methods.sparse.bitfit import Bitfit
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, changed, snapshot, trainable


def method(subset: str = "all") -> Bitfit:
    return Bitfit(Bitfit.Config(subset=subset))


@pytest.mark.parametrize(
    ("name", "subset", "count"),
    [
        ("roberta_base", "all", 102_144),
        ("bert_base", "all", 102_144),
        ("roberta_base", "query_mlp", 12 * (768 + 3072)),
        ("roberta_large", "query_mlp", 24 * (1024 + 4096)),
        ("gpt2", "all", 12 * (2304 + 768 + 3072 + 768 + 2 * 768) + 768),
        ("opt_125m", "all", 12 * (7 * 768 + 3072) + 768),
        ("qwen2_5_0_5b", "all", 24 * (896 + 2 * 128)),
    ],
)
def test_published_counts(name: str, subset: str, count: int) -> None:
    """The paper states half of the biases for the small subset: 0.04 % of 335 M on BERT-large is 122,880, with b_m2 of width 4d."""
    method_ = method(subset)
    model = method_.prepare(build(name, device="meta"), FakeContext(method_, []))
    heads = head_names(model)
    sizes = trainable(model)
    assert sum(size for key, size in sizes.items() if key not in heads) == count
    assert heads <= sizes.keys()


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_roberta", "tiny_deberta", "tiny_gpt2", "tiny_neox", "tiny_opt", "tiny_qwen2"])
def test_exactly_the_biases_and_the_head_change(name: str) -> None:
    method_ = method()
    ctx = FakeContext(method_, batches(3))
    model = method_.prepare(build(name), ctx)
    before = snapshot(model)
    model = method_.finalize(method_.fit(model, ctx), ctx)
    biases = {key for key in before if key.endswith(".bias")}
    # Softmax ignores what a key bias adds to every score of a query; its gradient is rounding noise or zero.
    sure = {key for key in biases if "key" not in key and "k_proj" not in key}
    assert sure | head_names(model) <= changed(model, before) <= biases | head_names(model)


def test_subset_trains_query_and_first_feed_forward_biases() -> None:
    method_ = method("query_mlp")
    model = method_.prepare(build("tiny_bert"), FakeContext(method_, []))
    layer = "bert.encoder.layer"
    expected = {f"{layer}.{i}.{part}.bias" for i in (0, 1) for part in ("attention.self.query", "intermediate.dense")}
    assert set(trainable(model)) - head_names(model) == expected


def test_biases_carry_no_weight_decay() -> None:
    method_ = method()
    ctx = FakeContext(method_, [])
    model = method_.prepare(build("tiny_bert"), ctx)
    decayed = {id(p) for group in method_.optimizer(model, ctx.settings).param_groups if group["weight_decay"] for p in group["params"]}
    assert {key for key, p in model.named_parameters() if id(p) in decayed} == {"bert.pooler.dense.weight", "classifier.weight"}


@pytest.mark.parametrize(
    ("name", "subset", "message"),
    [
        ("tiny_llama", "all", "bitfit needs bias parameters and llama has none"),
        ("tiny_llama", "query_mlp", "bitfit needs bias parameters and llama has none"),
        ("tiny_gpt2", "query_mlp", "needs a query bias of its own, and gpt2 fuses q, k and v"),
    ],
)
def test_models_that_cannot(name: str, subset: str, message: str) -> None:
    method_ = method(subset)
    with pytest.raises(UserError, match=message):
        method_.prepare(build(name), FakeContext(method_, []))


def test_traits_and_configuration() -> None:
    assert Bitfit.traits.biases
    with pytest.raises(UserError, match=r"method.subset=none is not allowed; allowed: all, query_mlp"):
        method("none")
