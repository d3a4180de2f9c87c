"""Emu: images as embeddings that a language model reads and regresses, one after the other."""

from typing import Any

import torch
from torch import Tensor

from mmblocks import Decoder, LMHead, TextEmbedding, TokenTable
from mmblocks.checkpoints.layouts.layout import Layout
from mmblocks.connectors.causal_former import CausalFormer
from mmblocks.heads import RegressionHead
from mmblocks.layers.towers.eva import EvaTower
from mmblocks.layers.towers.eva_layouts import eva_rules, eva_tower_arguments
from mmblocks.sequence.tokens import PADDING
from tests.parity.cases import Case

MANIFESTS = {name: [(RegressionHead, "emu")] for name in ("emu1_pretrain_multimodal_encoder",)}


def run(case: Case) -> None:
    parts = language_parts(case)
    head = case.load(RegressionHead, published_config(case), layout="emu")
    tower = EvaTower(**eva_tower_arguments(case.config["vision_cfg"]))
    names = Layout(
        "tower", eva_rules("visual.", ""), ignored=("visual.norm.*", "visual.head.*", "ln_visual.*", "cformer.*", "decoder.*")
    )
    tower.load_state_dict(dict(names.convert(case.weights, tower.config)))
    sizes = {name: case.config[name] for name in ("vision_cfg", "llama", "t5_config")}
    former = case.load(CausalFormer, sizes | {"vladapter_cfg": {"n_causal": case.config["n_causal"]}}, layout="emu")

    tokens = tower(case.io["in.image"])
    embeds_of_images = former(tokens)
    case.check("out.visual_tokens", tokens)
    case.check("out.image_embeds", embeds_of_images)

    ids, mask = case.io["in.input_ids"], case.io["in.attention_mask"]
    marks = case.config["token_ids"]
    is_image = ids == marks["<image>"]
    embeds = parts["embed"](ids).masked_scatter(is_image[..., None], embeds_of_images)
    hidden = parts["trunk"](embeds, table_of(mask))
    logits = parts["lm"].logits(hidden)
    real = mask == 1
    case.check("out.inputs_embeds", embeds)
    case.check("out.hidden", hidden, where=real)
    case.check("out.logits", logits, where=real)

    silent = torch.tensor(list(marks.values()))
    labels = torch.where(torch.isin(ids, silent), -100, ids)
    case.check("out.labels", labels)
    asked = labels[:, 1:] != -100
    case.check("loss.llm", parts["lm"].loss(hidden[:, :-1][asked], labels[:, 1:][asked]).mean())

    asked = is_image | (ids == marks["[IMG]"])
    case.check("out.regress_mask", asked)
    wanted = embeds[is_image | (ids == marks["[/IMG]"])].detach()
    case.check("out.regress_labels", wanted)
    predicted = head.sample(hidden[asked])
    case.check("out.regress_pred", predicted)
    torch.testing.assert_close(head.loss(hidden[asked], wanted), (predicted - wanted).square().mean(-1))

    found, last_ids, last_mask, _ = regress(parts, head, embeds, ids, mask, case.config["n_causal"], marks)
    case.check("out.generated_embeds", found)
    # The ids upstream feeds in its last step: after the text, before the padding of shorter rows.
    case.check("out.gen_last_input_ids", last_ids)
    case.check("out.gen_last_attention_mask", last_mask)


def published_config(case: Case) -> dict[str, Any]:
    """Without notes on how the case was made."""
    notes = ("n_causal", "texts", "vocab_after_special_tokens")
    return {name: value for name, value in case.config.items() if name not in notes}


def language_parts(case: Case) -> dict[str, Any]:
    """Trunk, embedding and head of the language model inside; their layouts know the names after ``decoder.lm.``."""
    prefix = "decoder.lm."
    weights = {name.removeprefix(prefix): value for name, value in case.weights.items() if name.startswith(prefix)}
    config = {**case.config["llama"], "vocab_size": case.config["vocab_after_special_tokens"]}
    parts: dict[str, Any] = {}
    for name, cls in (("trunk", Decoder), ("embed", TextEmbedding), ("lm", LMHead)):
        layout = next(layout for layout in cls.layouts if layout.name == "llama")
        arguments = layout.arguments(config)
        if cls is Decoder and made_in_bfloat16(weights, arguments):
            arguments["rope_dtype"] = "bfloat16"
        parts[name] = cls(**arguments)
        known = {key: value for key, value in weights.items() if layout.to_ours(key)}
        parts[name].load_state_dict(dict(layout.convert(known, parts[name].config)))
    return parts


def made_in_bfloat16(weights: dict[str, Tensor], arguments: dict[str, Any]) -> bool:
    """Upstream makes Emu's language model in bfloat16, and its tables of sines and cosines keep that rounding ever after."""
    stored = weights.get("model.layers.0.self_attn.rotary_emb.inv_freq")
    head_dim = arguments["head_dim"]
    exact = arguments["rope_theta"] ** (-torch.arange(0, head_dim, 2) / head_dim)
    return stored is not None and not torch.allclose(stored, exact, rtol=1e-6)


def table_of(mask: Tensor) -> TokenTable:
    """Plain text; a token whose mask is 0 is padding, on either side."""
    table = TokenTable.text(*mask.shape)
    padding = mask == 0
    return table._replace(
        document=torch.where(padding, PADDING, table.document),
        modality=torch.where(padding, PADDING, table.modality),
        order=torch.where(padding, 0, mask.cumsum(1) - 1),
    )


@torch.no_grad()
def regress(
    parts: dict[str, Any], head: Any, embeds: Tensor, ids: Tensor, mask: Tensor, count: int, marks: dict[str, int], feed: Any = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``count`` embeddings after [IMG], with a cache: ids and mask of the last step, and its states, as upstream has them.

    Rows are filled up at the right, wherever the prompt was: each row goes on after its own last token.
    """
    batch = len(ids)
    lengths = mask.sum(dim=1)
    tail = torch.tensor([marks["[IMG]"]] + [marks["<image>"]] * (count - 1)).expand(batch, -1)
    if bool((mask[:, -1] == 1).all()):  # full rows, or padding at the left
        last_ids, last_mask = torch.cat([ids, tail], dim=1), torch.cat([mask, torch.ones_like(tail)], dim=1)
    else:
        last_ids = torch.full((batch, int(lengths.max()) + count), marks["[PAD]"])
        last_mask = torch.zeros_like(last_ids)
        for row, length in enumerate(lengths.tolist()):
            last_ids[row, : length + count] = torch.cat([ids[row, :length], tail[row]])
            last_mask[row, : length + count] = 1

    found, states = [], []
    for row in range(batch):  # each row alone: positions and padding do not matter to it
        known = mask[row] == 1
        prompt = torch.cat([embeds[row][known], parts["embed"](tail[row, :1])])[None]
        table = TokenTable.text(1, prompt.shape[1] + count - 1)
        cache = parts["trunk"].new_cache(1, table.shape[1])
        hidden = parts["trunk"](prompt, table.slice(0, prompt.shape[1]), cache)
        row_states = [hidden[0]]
        predicted = [head.sample(hidden[:, -1])]
        for place in range(prompt.shape[1], table.shape[1]):
            fed = predicted[-1] if feed is None else feed(predicted[-1])
            hidden = parts["trunk"](fed[:, None], table.slice(place, place + 1), cache)
            row_states.append(hidden[0])
            predicted.append(head.sample(hidden[:, -1]))
        found.append(torch.cat(predicted))
        laid = torch.zeros(last_ids.shape[1], hidden.shape[-1])
        laid[last_mask[row] == 1] = torch.cat(row_states)
        states.append(laid)
    return torch.stack(found), last_ids, last_mask, torch.stack(states)
