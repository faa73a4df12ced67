"""Decoding: a prompt alone against the same prompt in batches, and against searches without any batch or cache."""

import pytest
import torch
from transformers import GenerationConfig

from tasks.base import EvalOptions
from tasks.generation import Completion, Decoding, complete

KINDS = ("llama", "gpt2", "gpt_neox", "opt", "qwen2", "mixtral", "gemma")
LENGTHS = (7, 1, 23, 12, 2, 23, 40, 5, 16)


def model_of(tiny, kind):
    """A random model whose completions differ from prompt to prompt and of which some end early."""
    options = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
        "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.3},
        "qwen2": {"num_key_value_heads": 2},
        "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2},
        "gemma": {"num_key_value_heads": 1, "head_dim": 16},
    }
    return tiny(kind, "CausalLM", positions=128, **options.get(kind, {}))


def prompts(seed=0):
    draws = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 250, (n,), generator=draws).tolist() for n in LENGTHS]


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_alone_gives_the_same_tokens_as_in_any_batch(kind, beams, tiny, byte_tokenizer):
    model, decoding = model_of(tiny, kind), Decoding(12, beams)
    alone = [complete(model, byte_tokenizer, [prompt], decoding, EvalOptions(batch=1))[0] for prompt in prompts()]
    assert len({tuple(c.ids) for c in alone}) > 3
    for batch in (3, 32):
        assert complete(model, byte_tokenizer, prompts(), decoding, EvalOptions(batch=batch)) == alone
    reverse = complete(model, byte_tokenizer, prompts()[::-1], decoding, EvalOptions(batch=4))
    assert reverse[::-1] == alone


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_equals_transformers_on_one_prompt_without_padding(kind, beams, tiny, byte_tokenizer):
    model = model_of(tiny, kind).eval()
    settings = GenerationConfig(do_sample=False, num_beams=beams, max_new_tokens=10, eos_token_id=2, pad_token_id=0)
    for prompt, found in zip(prompts(), complete(model, byte_tokenizer, prompts(), Decoding(10, beams), EvalOptions()), strict=True):
        out = model.generate(input_ids=torch.tensor([prompt]), generation_config=settings)[0, len(prompt) :].tolist()
        assert found.ids == (out[: out.index(2)] if 2 in out else out)


def by_hand(model, prompt, beams, new_tokens, end=2):
    """Beam search as it is defined: whole forward passes, no cache; hypotheses ranked by mean log-probability of their tokens."""
    running, finished = [(0.0, [])], []
    for step in range(1, new_tokens + 1):
        grown = []
        for total, ids in running:
            with torch.no_grad():
                scores = model(torch.tensor([prompt + ids])).logits[0, -1].log_softmax(-1)
            grown += [(total + value.item(), [*ids, token]) for token, value in enumerate(scores)]
        grown = sorted(grown, key=lambda pair: -pair[0])[: 2 * beams]
        last = step == new_tokens
        finished += [(total / step, ids) for total, ids in grown[:beams] if ids[-1] == end or last]
        finished = sorted(finished, key=lambda pair: -pair[0])[:beams]
        running = [pair for pair in grown if pair[1][-1] != end][:beams]
        if len(finished) == beams and finished[-1][0] >= running[0][0] / step:
            break
    best = finished[0][1]
    return best[:-1] if best[-1] == end else best


@pytest.mark.parametrize("beams", [1, 3])
def test_equals_a_beam_search_written_out(beams, tiny, byte_tokenizer):
    model = model_of(tiny, "llama").eval()
    found = complete(model, byte_tokenizer, prompts()[:4], Decoding(6, beams), EvalOptions())
    assert [c.ids for c in found] == [by_hand(model, prompt, beams, 6) for prompt in prompts()[:4]]


def scripted(model, text, byte_tokenizer):
    """The model writes `text` and then its end token, whatever it reads first: the next token follows from the newest alone."""
    tokens = [byte_tokenizer.convert_tokens_to_ids(c) for c in text]
    assert len(set(tokens)) == len(tokens)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(byte_tokenizer), model.config.hidden_size))
        model.lm_head.weight.zero_()
        for now, after in zip([byte_tokenizer.convert_tokens_to_ids(">"), *tokens], [*tokens, 2], strict=True):
            model.lm_head.weight[after, now] = 1.0
    return model


@pytest.mark.parametrize("beams", [1, 4])
def test_a_completion_ends_before_a_stop_string_or_at_the_end_token(beams, tiny, byte_tokenizer):
    model = tiny("llama", "CausalLM")
    model = type(model)(type(model.config)(**{**model.config.to_dict(), "hidden_size": 264, "head_dim": 66}))
    model = scripted(model, "abcdeUSERxyz", byte_tokenizer)
    given = [byte_tokenizer.encode(text, add_special_tokens=False) for text in (">", "q>", "some longer words>")]

    def texts(*stop):
        return complete(model, byte_tokenizer, given, Decoding(32, beams, stop), EvalOptions())

    assert [c.text for c in texts()] == ["abcdeUSERxyz"] * 3
    assert [c.text for c in texts("USER", "nothing")] == ["abcde"] * 3
    assert [c.text for c in texts("xyz", "cd")] == ["ab"] * 3
    if beams == 1:
        assert [byte_tokenizer.decode(c.ids) for c in texts("USER")] == ["abcdeUSER"] * 3


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_checkpoints_own_sampling_settings_are_left_out_and_put_back(wrapped, tiny, byte_tokenizer):
    from peft import LoraConfig, get_peft_model

    model = model_of(tiny, "llama")
    plain = complete(model, byte_tokenizer, prompts(), Decoding(8), EvalOptions())
    own = GenerationConfig(do_sample=True, temperature=3.0, repetition_penalty=5.0, max_length=20, num_beams=2)
    model.generation_config = own
    candidate = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])) if wrapped else model
    candidate.train()
    assert complete(candidate, byte_tokenizer, prompts(), Decoding(8), EvalOptions()) == plain
    assert model.generation_config is own and candidate.training


def test_nothing_to_decode(tiny, byte_tokenizer):
    assert complete(model_of(tiny, "llama"), byte_tokenizer, [], Decoding(4), EvalOptions()) == []
    assert Completion([], "").text == ""
