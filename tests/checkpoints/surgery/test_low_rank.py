"""LoRA through peft: nothing changes until it has learned, it alone learns, and merged it is part of the weights."""

import json
import sys

import pytest
import torch

from mmblocks import Decoder, LMHead, MultimodalModel, TextEmbedding, TokenTable
from mmblocks.checkpoints.surgery.freezing import freeze
from mmblocks.checkpoints.surgery.graft import check_unchanged
from mmblocks.checkpoints.surgery.low_rank import attach_lora, load_lora, lora_names, merge_lora, save_lora
from mmblocks.sequence.tokens import Modality
from mmblocks.trunks import ModalityLoRADecoder, RoutedDecoder

peft = pytest.importorskip("peft")

SIZES = {"dim": 16, "num_layers": 3, "num_heads": 2, "mlp_dim": 24}
LAYERS = ("layers.{}.attention.query", "layers.{}.mlp.down")


def decoder(cls: type[Decoder] = Decoder) -> Decoder:
    torch.manual_seed(0)
    return cls(**SIZES).eval()


def row() -> tuple[torch.Tensor, TokenTable]:
    table = TokenTable.text(2, 5)
    table.modality[:, 1:3] = Modality.VISION.value
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)), table


def trained(module: torch.nn.Module) -> torch.nn.Module:
    for name in lora_names(module):
        torch.nn.init.normal_(module.get_parameter(name), std=0.2)
    return module


def test_attached_adapters_change_nothing_and_learn_alone() -> None:
    plain, adapted = decoder(), decoder()
    report = attach_lora(adapted, LAYERS, rank=2, alpha=4)
    report.verify()
    assert sorted(report.new) == sorted(lora_names(adapted)) and len(report.new) == 12
    assert set(report.copied.values()) == set(plain.state_dict()) and not report.dropped
    check_unchanged(plain, adapted, *row())
    adapted(*row()).square().sum().backward()
    assert {name for name, parameter in adapted.named_parameters() if parameter.grad is not None} == set(lora_names(adapted))


def test_merged_adapters_are_part_of_the_weights(tmp_path) -> None:
    plain, adapted = decoder(), decoder()
    attach_lora(adapted, LAYERS, rank=2, alpha=4)
    wanted = trained(adapted)(*row())
    report = merge_lora(adapted)
    report.verify()
    assert set(report.new) == {f"layers.{n}.{name}.weight" for n in range(3) for name in ("attention.query", "mlp.down")}
    assert len(report.dropped) == 18
    torch.testing.assert_close(adapted(*row()), wanted, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain(*row()), wanted, atol=1e-3)
    adapted.save_pretrained(tmp_path / "merged")
    assert torch.equal(Decoder.from_pretrained(tmp_path / "merged")(*row()), adapted(*row()))
    attach_lora(adapted, LAYERS, rank=1)  # and again


def test_the_files_are_pefts_own(tmp_path) -> None:
    adapted = decoder()
    attach_lora(adapted, LAYERS, rank=2, use_rslora=True)
    wanted = trained(adapted)(*row())
    save_lora(adapted, tmp_path / "ours")
    again = decoder()
    report = load_lora(again, tmp_path / "ours")
    assert sorted(report.new) == sorted(lora_names(adapted))
    assert torch.equal(again(*row()), wanted)
    assert all(again.get_parameter(name).requires_grad for name in lora_names(again))
    theirs = peft.PeftModel.from_pretrained(decoder(), tmp_path / "ours")
    assert torch.equal(theirs(*row()), wanted)
    theirs.save_pretrained(tmp_path / "theirs")
    load_lora(again := decoder(), tmp_path / "theirs")
    assert torch.equal(again(*row()), wanted)


def test_a_model_that_peft_was_given(tmp_path) -> None:
    model = MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=10, dim=16)}, trunk=decoder(), outputs={"lm": LMHead(dim=16, vocab_size=10)}
    )
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query", "value"]))
    trained(model)
    wanted = model.trunk(*row())
    save_lora(model, tmp_path / "adapter")
    assert wrapped.merge_and_unload() is model
    torch.testing.assert_close(model.trunk(*row()), wanted, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(MultimodalModel.from_pretrained(tmp_path / "model").trunk(*row()), model.trunk(*row()))


def test_adapters_beside_other_parts_that_train() -> None:
    adapted = decoder()
    attach_lora(adapted, LAYERS[:1], rank=2)
    freeze(adapted, train=[*lora_names(adapted), "norm.weight"])
    adapted(*row()).sum().backward()
    assert adapted.norm.weight.grad is not None and adapted.layers[0].mlp.up.weight.grad is None


@pytest.mark.parametrize("expert", ["text", "vision"])
def test_the_weights_of_one_modality(expert) -> None:
    """Routed maps read their experts' weights together; with adapters each is called."""
    plain, adapted = decoder(RoutedDecoder), decoder(RoutedDecoder)
    attach_lora(adapted, (f"layers.2.mlp.down.{expert}",), rank=2)
    check_unchanged(plain, adapted, *row())
    hidden, table = trained(adapted)(*row()), row()[1]
    changed = (hidden != plain(*row())).any(dim=-1)
    assert torch.equal(changed, table.modality == Modality[expert.upper()].value)
    merge_lora(adapted)
    torch.testing.assert_close(adapted(*row()), hidden, atol=1e-5, rtol=1e-5)


def test_low_rank_maps_of_one_modality_take_no_adapters() -> None:
    adapted = ModalityLoRADecoder(**SIZES, adapted=("vision",), rank=2, alpha=2)
    attach_lora(adapted, ("layers.{}.mlp.up.narrow.vision",), rank=1)
    with pytest.raises(TypeError, match="accepted: no adapters on them"):
        adapted(*row())


def test_half_precision() -> None:
    adapted = decoder().bfloat16()
    attach_lora(adapted, LAYERS, rank=2)
    embeds, table = row()
    wanted = trained(adapted)(embeds.bfloat16(), table)
    merge_lora(adapted)
    assert wanted.dtype == torch.bfloat16
    torch.testing.assert_close(adapted(embeds.bfloat16(), table), wanted, atol=0.1, rtol=0.1)


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch) -> None:
    plain = decoder()
    with pytest.raises(ValueError, match="rank is 0"):
        attach_lora(plain, LAYERS, rank=0)
    with pytest.raises(ValueError, match="no linear layer of Decoder"):
        attach_lora(plain, (*LAYERS, "layers.{}.attention_norm"), rank=2)
    with pytest.raises(ValueError, match="Decoder has no adapters"):
        save_lora(plain, tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json"):
        load_lora(plain, tmp_path)
    with pytest.raises(ValueError, match="accepted: none; freeze chooses"):
        attach_lora(plain, LAYERS, rank=2, modules_to_save=["norm"])
    adapted = decoder()
    attach_lora(adapted, LAYERS, rank=2)
    with pytest.raises(ValueError, match="has adapters already"):
        attach_lora(adapted, LAYERS, rank=2)
    with pytest.raises(ValueError, match="has an adapter; save_lora saves it, merge_lora ends it"):
        adapted.save_pretrained(tmp_path / "block")
    assert not (tmp_path / "block").exists()
    save_lora(adapted, tmp_path / "adapter")
    torch.manual_seed(0)
    wider = Decoder(**{**SIZES, "mlp_dim": 32})
    with pytest.raises(ValueError, match=r"do not fit Decoder: 3 tensors .* layers\.0\.mlp\.down\.lora_A\.weight"):
        load_lora(wider, tmp_path / "adapter")
    assert all(parameter.requires_grad for parameter in wider.parameters())
    assert lora_names(wider) == [] and set(wider.state_dict()) == set(plain.state_dict())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'mmblocks\[train\]'"):
        attach_lora(plain, LAYERS, rank=2)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"megatron_config": {"a": 1}, "megatron_core": "harm.core"}, "megatron_config is .*; accepted: none"),
        ({"layer_replication": [[0, 10**9]]}, "layer_replication is .*; accepted: none"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config is .*; accepted: none"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_iter": 10**9}}, "init_lora_weights is 'loftq'; accepted: "),
        ({"init_lora_weights": "pissa_niter_1000000000"}, "init_lora_weights is 'pissa_niter_1000000000'; accepted: "),
        ({"init_lora_weights": ["eva"]}, "init_lora_weights is "),
        ({"r": 10**9}, "a rank is 1000000000; accepted: 1 to 2"),
        ({"r": "2"}, "a rank is '2'"),
        ({"r": True}, "a rank is True"),
        ({"r": 0}, "a rank is 0"),
        ({"r": None}, "a rank is None"),
        ({"rank_pattern": {".*": 10**9}}, "a rank is 1000000000"),
        ({"rank_pattern": [10**9]}, "rank_pattern is "),
        ({"rank_pattern": {"(": 1}}, "rank_pattern has a name that is no pattern"),
        ({"rank_pattern": {"query": 2}, "r": 10**9}, "a rank is 1000000000"),
        ({"peft_type": "IA3"}, "holds 'IA3'; accepted: LORA"),
        ({"peft_type": None}, "holds None; accepted: LORA"),
    ],
    ids=str,
)
def test_configs_that_mean_harm(tmp_path, changes, match) -> None:
    adapted = decoder()
    attach_lora(adapted, LAYERS, rank=2)
    save_lora(adapted, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    plain = decoder()
    with pytest.raises(ValueError, match=match):
        load_lora(plain, tmp_path / "adapter")
    assert lora_names(plain) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"init_lora_weights": True, "eva_config": {"rho": 2.0}},
        {"corda_config": {"corda_method": "ipm"}},
        {"loftq_config": {"loftq_bits": 4, "loftq_iter": 10**9}},
        {"lora_ga_config": {"direction": "ArB2r"}},
        {"r": 64, "rank_pattern": {"query": 2, "down": 2}},
        {"rank_pattern": {"nothing": 64}},
    ],
    ids=str,
)
def test_settings_that_change_nothing(tmp_path, changes) -> None:
    """Of how adapters have started, and ranks that no layer has; peft writes them."""
    adapted = decoder()
    attach_lora(adapted, LAYERS, rank=2)
    wanted = trained(adapted)(*row())
    save_lora(adapted, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    again = decoder()
    load_lora(again, tmp_path / "adapter")
    assert torch.equal(again(*row()), wanted)
    save_lora(again, tmp_path / "again")
    load_lora(decoder(), tmp_path / "again")


def test_an_unused_rank_builds_nothing_large(tmp_path) -> None:
    """The config names a layer that the file of weights lacks, with a rank of its own."""
    adapted = decoder()
    attach_lora(adapted, LAYERS[:1], rank=2)
    save_lora(adapted, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    changes = {"target_modules": ["query", "down"], "rank_pattern": {"query": 2}, "r": 10**9}
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    plain = decoder()
    with pytest.raises(ValueError, match=r"do not fit Decoder: 6 tensors .*mlp\.down\.lora_A"):
        load_lora(plain, tmp_path / "adapter")
    assert lora_names(plain) == []


def test_adapter_of_an_embedding(tmp_path) -> None:
    model = torch.nn.ModuleDict({"table": torch.nn.Embedding(10, 16)})
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["table"]), model)
    torch.nn.init.normal_(model["table"].lora_embedding_B["default"])
    save_lora(model, tmp_path / "adapter")
    again = torch.nn.ModuleDict({"table": torch.nn.Embedding(10, 16)})
    load_lora(again, tmp_path / "adapter")
    assert torch.equal(again["table"].lora_embedding_B["default"], model["table"].lora_embedding_B["default"])


def test_adapter_files_that_are_none(tmp_path) -> None:
    adapted = decoder()
    attach_lora(adapted, LAYERS, rank=2)
    for name, content, match in (
        ("adapter_config.json", b"[" * 100_000, "is not JSON"),
        ("adapter_config.json", b"[]", "accepted: LORA"),
        ("adapter_model.safetensors", b"x" * 20, "is no valid safetensors file"),
    ):
        save_lora(adapted, tmp_path / "adapter")
        (tmp_path / "adapter" / name).write_bytes(content)
        with pytest.raises(ValueError, match=match):
            load_lora(decoder(), tmp_path / "adapter")
    save_lora(adapted, tmp_path / "adapter")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / "adapter" / name).read_bytes())
        (tmp_path / "adapter" / name).unlink()
        (tmp_path / "adapter" / name).symlink_to(tmp_path / name)
        with pytest.raises(ValueError, match="a link that leads out of the folder"):
            load_lora(decoder(), tmp_path / "adapter")
        (tmp_path / "adapter" / name).unlink()
        (tmp_path / "adapter" / name).write_bytes((tmp_path / name).read_bytes())
    load_lora(decoder(), tmp_path / "adapter")
