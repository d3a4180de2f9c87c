"""What NEO's training makes of a plain Qwen3: weights kept, and projections for rows and columns added."""

import torch

from mmblocks import Decoder, LMHead, TextEmbedding
from mmblocks.trunks.neo.init import neo_from_qwen3
from mmblocks.trunks.neo.trunk import NEOTrunk
from tests.parity.cases import Case


def run(case: Case) -> None:
    extra = case.config["extra_num_layers"]
    added = ("rope_theta_hw", "max_position_embeddings_hw", "extra_num_layers")
    config = {name: value for name, value in case.config.items() if name not in added}
    qwen3 = case.load(Decoder, {**config, "num_hidden_layers": config["num_hidden_layers"] - extra}, layout="llama-qk-norm")
    trunk, report = neo_from_qwen3(qwen3, num_prebuffer_layers=extra, rope_theta_place=case.config["rope_theta_hw"])
    report.verify()
    assert not report.dropped

    (layout,) = (known for known in NEOTrunk.layouts if known.name == "neo-llm")
    made = dict(layout.convert(trunk.state_dict(), trunk.config, to="theirs"))
    made["model.embed_tokens.weight"] = case.load(TextEmbedding, config).weight
    made["lm_head.weight"] = case.load(LMHead, config, layout="llama").weight
    for name in case.named("out."):
        case.check(f"out.{name}", made[name])
    # The layers put before are random and not stored; their norms are one.
    for name, value in made.items():
        if f"out.{name}" not in case.io:
            assert torch.equal(value, torch.ones_like(value)) if "norm" in name else 0.01 < value.std() < 0.03, name
