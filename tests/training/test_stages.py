"""Stages: what trains at which rate, and what counts; those of EVEv1 and EVEv2 on tiny models."""

import pytest
import torch
from torch import nn

from mmblocks import image, text
from mmblocks.checkpoints.surgery.freezing import trainable_parts
from mmblocks.embedders.eve1_alignment import EVE1PatchAlignment
from mmblocks.models import EVE1, EVE2
from mmblocks.training.stages import EVE1_STAGES, EVE2_STAGES, TrainingStage

SIZES = {"vocab_size": 40, "dim": 32, "num_layers": 2, "num_heads": 4, "mlp_dim": 48, "vision_dim": 16}


def test_the_first_pattern_that_fits_counts() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    groups = TrainingStage("s", {"{}.bias": 0.0, "1.*": 0.5, "*": 0.1}, weight_decay=0.2).prepare(model)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [("1.*", 0.5, 0.2), ("*", 0.1, 0.2)]
    assert [p is q for p, q in zip(groups[1]["params"], [model[0].weight, model[2].weight], strict=True)] == [True, True]
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False] * 3
    optimizer = torch.optim.AdamW(groups)
    model(torch.randn(4, 2)).square().sum().backward()
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer.step()
    assert [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)] == [False, True] * 3


def test_a_tied_parameter_is_in_one_group() -> None:
    model = nn.ModuleDict({"read": nn.Embedding(5, 3), "write": nn.Linear(3, 5, bias=False)})
    model["write"].weight = model["read"].weight
    (group,) = TrainingStage("s", {"write.*": 0.1}).prepare(model)
    assert len(group["params"]) == 1 and group["params"][0] is model["read"].weight
    with pytest.raises(ValueError, match=r"has a rate for write.\*; no parameter is left"):
        TrainingStage("s", {"read.*": 0.1, "write.*": 0.1}).prepare(model)


def test_losses_are_weighted_by_name() -> None:
    losses = {"text": torch.tensor(2.0), "vision": torch.tensor(3.0), "other": torch.tensor(100.0)}
    assert TrainingStage("s", {"*": 1.0}, losses={"text": 1.0, "vision": 0.5}).loss(losses) == 3.5
    with pytest.raises(ValueError, match="stage 's' weighs image; the losses are text, vision, other"):
        TrainingStage("s", {"*": 1.0}, losses={"image": 1.0}).loss(losses)


def test_eve1_trains_in_its_stages() -> None:
    torch.manual_seed(0)
    model = EVE1(**SIZES, vision_heads=2, patch_size=2, image_size=16, teacher_image_size=8, teacher_patch_size=2)
    alignment = EVE1PatchAlignment(dim=32, teacher_dim=8, num_layers=2, layer_step=1, num_heads=2)
    both = nn.ModuleDict({"model": model, "alignment": alignment})
    batch = model.batch_builder()([[image(torch.rand(3, 8, 12)), text([1, 2, 3], target="text")]])
    trained = []
    for stage in EVE1_STAGES:
        both.zero_grad()
        groups = stage.prepare(both)
        stage.loss(model.aligned(batch, alignment, [torch.randn(2, 3, 8)]).losses).backward()
        names = {name for name, parameter in both.named_parameters() if parameter.grad is not None}
        assert names == {name for name, parameter in both.named_parameters() if parameter.requires_grad}
        assert sum(len(group["params"]) for group in groups) == len(names)
        trained.append({name.partition(".")[0] + "." + name.split(".")[1] for name in names})
    assert {part for part in trained[0] if part.startswith("model")} == {"model.inputs"}
    assert trained[1] == trained[2] > trained[0]
    assert [list(stage.rates.values()) for stage in EVE1_STAGES] == [[4e-4, 4e-4], [4e-5], [2e-5]]


def test_eve2_trains_in_its_stages() -> None:
    model = EVE2(**SIZES)
    texts = {name for name, _ in model.named_parameters() if "vision" not in name}
    shares = []
    for stage in EVE2_STAGES:
        groups = stage.prepare(model)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen in (set(), texts) if stage is not EVE2_STAGES[0] else frozen > texts
        assert {group["lr"] for group in groups} == set(stage.rates.values())
        shares.append(trainable_parts(model).total.trainable)
    assert shares[0] < shares[1] == shares[2] < shares[3] == shares[4] == trainable_parts(model).total.total
