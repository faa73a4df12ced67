"""What the traits `sparse_delta` and `sparse` owe: a vector that makes the export of the base, and a packed file that gives it back."""

import torch

from harness import cell as spine
from harness import export, sparse_delta, sparse_export
from harness.export import probe_logits
from methods.maths import sparse_vector
from methods.roles import head_names
from tests.contract.trial import Trial, snapshot, tensors_of

SCALE = 1e-5


def test_the_base_and_the_exported_vector_make_the_exported_model(trial: Trial) -> None:
    folder = trial.straight / sparse_delta.FOLDER
    assert folder.exists() == trial.traits.sparse_delta
    if not trial.traits.sparse_delta:
        return
    final, model = export.reload(trial.straight / "model").eval(), spine.set_up(trial.container("base")).model
    before, heads = snapshot(model), head_names(model)
    delta = sparse_delta.read(folder)
    differing = {n: int((p != before[n]).sum()) for n, p in final.named_parameters() if n not in heads}
    entries, total = sum(differing.values()), sum(before[n].numel() for n in differing)
    costs = trial.record(trial.straight).costs["delta"]
    assert costs == {"entries": entries, "bytes": (folder / sparse_delta.WEIGHTS).stat().st_size}
    assert 0 < entries == sparse_vector.count(delta.vector) <= total / 2
    replaced = sparse_delta.apply(model, [delta])
    expected = probe_logits(final)
    assert (probe_logits(model) - expected).abs().max() <= SCALE * expected.abs().max()
    assert all(torch.allclose(p, final.get_parameter(n), rtol=0, atol=2e-7) for n, p in model.named_parameters())
    sparse_delta.remove(model, replaced)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_packed_export_gives_every_tensor_back(trial: Trial) -> None:
    path = trial.straight / sparse_export.FILE
    assert path.exists() == trial.traits.sparse
    if not trial.traits.sparse:
        return
    dense, packed, costs = tensors_of(trial.straight), sparse_export.unpacked(path), trial.record(trial.straight).costs
    assert dense.keys() == packed.keys()
    assert all(torch.equal(packed[name].view(-1).view(torch.uint8), t.view(-1).view(torch.uint8)) for name, t in dense.items())
    assert costs["packed"] == {"bytes": path.stat().st_size} and costs["packed"]["bytes"] < costs["bytes"]
