import json

import pytest
import torch

from mmblocks import Decoder, Generation, LMHead, MultimodalModel, TextEmbedding, TextGrammar, text
from mmblocks.checkpoints import attach_lora, load_adapters, merge_lora, save_adapters
from mmblocks.checkpoints.surgery.low_rank import save_lora
from mmblocks.trunks import ModalityLoRADecoder

pytest.importorskip("peft")

SIZES = {"dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 24}


def _model(**options) -> MultimodalModel:
    torch.manual_seed(0)
    return MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=16, dim=16)},
        trunk=ModalityLoRADecoder(**SIZES, **options) if options else Decoder(**SIZES),
        outputs={"text": LMHead(dim=16, vocab_size=16)},
    )


def _stir(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))


def _output(model: MultimodalModel) -> torch.Tensor:
    return model.eval().hidden(model.batch_builder()([[text([1, 2, 3, 4])]]))


@pytest.mark.parametrize("also_trained", [False, True])
def test_a_model_and_its_adapters(also_trained, tmp_path) -> None:
    model = _model()
    model.save_pretrained(tmp_path / "base")
    before = _output(model)
    attach_lora(model, ("trunk.layers.{}.attention.query", "trunk.layers.{}.attention.value"), rank=2)
    if also_trained:
        model.outputs["text"].requires_grad_()
        model.trunk.get_submodule("layers.0.attention.query.base_layer").requires_grad_()
    _stir(model)
    save_adapters(model, tmp_path / "adapters")
    size = sum(file.stat().st_size for file in (tmp_path / "adapters").iterdir())
    assert size < (tmp_path / "base/trunk/model.safetensors").stat().st_size
    again = load_adapters(MultimodalModel.from_pretrained(tmp_path / "base"), tmp_path / "adapters")
    assert torch.equal(_output(again), _output(model)) and not torch.allclose(_output(again), before)
    for (name, one), (other_name, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other_name and torch.equal(one, other) and one.requires_grad == other.requires_grad, name
    options = Generation(max_tokens=3, generator=0)
    written = [next(one.generate([[text([1])]], TextGrammar(16), options)).segment.content for one in (model, again)]
    assert written[0] == written[1]
    merge_lora(again)
    again.save_pretrained(tmp_path / "whole")
    torch.testing.assert_close(_output(MultimodalModel.from_pretrained(tmp_path / "whole")), _output(model))


def test_adapters_of_several_parts(tmp_path) -> None:
    model = _model()
    attach_lora(model.trunk.get_submodule("layers.0"), ("attention.query",), rank=2)
    attach_lora(model.trunk.get_submodule("layers.1.mlp"), ("down",), rank=3)
    _stir(model)
    with pytest.raises(ValueError, match=r"attached to trunk\.layers\.0, trunk\.layers\.1\.mlp; accepted: .* or save_adapters"):
        save_lora(model, tmp_path)
    save_adapters(model, tmp_path)
    again = load_adapters(_model(), tmp_path)
    assert torch.equal(_output(again), _output(model))
    nested = _model()
    attach_lora(nested.trunk, ("layers.{}.attention.query",), rank=2)
    attach_lora(nested.trunk.get_submodule("layers.1.mlp"), ("down",), rank=3)
    with pytest.raises(ValueError, match=r"trunk\.layers\.1\.mlp lies inside trunk; accepted: adapters on one of them"):
        save_adapters(nested, tmp_path)


def test_low_rank_maps_that_a_trunk_has_by_itself(tmp_path) -> None:
    model = _model(rank=2)
    model.save_pretrained(tmp_path / "base")
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("narrow" in name or "widen" in name)
    assert any(parameter.requires_grad for parameter in model.parameters())
    _stir(model)
    save_adapters(model, tmp_path / "adapters")
    assert sorted(file.name for file in (tmp_path / "adapters").iterdir()) == ["adapters.json", "trained.safetensors"]
    again = load_adapters(MultimodalModel.from_pretrained(tmp_path / "base"), tmp_path / "adapters")
    for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, other) and one.requires_grad == other.requires_grad, name


def test_a_folder_of_peft_alone(tmp_path) -> None:
    model = _model()
    attach_lora(model, ("trunk.layers.{}.attention.query",), rank=2)
    _stir(model)
    save_lora(model, tmp_path)
    assert torch.equal(_output(load_adapters(_model(), tmp_path)), _output(model))


def test_what_does_not_fit_is_refused_and_nothing_is_changed(tmp_path) -> None:
    model = _model()
    with pytest.raises(ValueError, match="nothing of it is frozen"):
        save_adapters(model, tmp_path / "x")
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing of it has gradients"):
        save_adapters(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    model.outputs["text"].requires_grad_()
    attach_lora(model.trunk, ("layers.{}.attention.query",), rank=2)
    save_adapters(model, tmp_path / "adapters")
    smaller = MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=9, dim=16)}, trunk=Decoder(**SIZES), outputs={"text": LMHead(dim=16, vocab_size=9)}
    )
    values = {name: value.clone() for name, value in smaller.state_dict().items()}
    with pytest.raises(ValueError, match=r"does not fit MultimodalModel: 1 tensors are .* misshapen: outputs\.text\.weight"):
        load_adapters(smaller, tmp_path / "adapters")
    assert all(torch.equal(value, values[name]) for name, value in smaller.state_dict().items())
    assert all(parameter.requires_grad for parameter in smaller.parameters())
    with pytest.raises(FileNotFoundError, match="has no adapter_config"):
        load_adapters(_model(), tmp_path)
    config = tmp_path / "adapters/adapters.json"
    content = json.loads(config.read_text())
    for wrong, message in (
        ({"trained": "x"}, "accepted: a list of names"),
        ({"trained": ["../x"]}, "holds other tensors"),
        ({"lora": True}, "accepted: a list of parts"),
        ({"lora": ["../x"]}, "accepted: a list of parts"),
        ({"lora": ["brain"]}, "adapters of brain, which MultimodalModel does not have"),
    ):
        config.write_text(json.dumps(content | wrong))
        with pytest.raises(ValueError, match=message):
            load_adapters(_model(), tmp_path / "adapters")
    config.write_text(json.dumps(content | {"lora": ["trunk", "inputs.text"]}))
    untouched = _model()
    with pytest.raises(FileNotFoundError, match="has no adapter_config"):
        load_adapters(untouched, tmp_path / "adapters")
    assert all(parameter.requires_grad for parameter in untouched.parameters())
    assert list(untouched.state_dict()) == list(_model().state_dict())
    config.write_text(json.dumps(content))
    (tmp_path / "adapters/trained.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no trained"):
        load_adapters(_model(), tmp_path / "adapters")
