"""The aggregator: each query reads its part of every encoder's features, by the formula; names, files, gradients."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import gelu, interpolate

from mmblocks import Block
from mmblocks.connectors.spatial_aggregator import SpatialAggregator

SIZES = {"in_dims": (5, 7), "dim": 10, "windows": (1, 2), "grid": (2, 3), "hidden_dim": 8, "num_layers": 2, "num_heads": 2}


def aggregator(**options) -> SpatialAggregator:
    torch.manual_seed(0)
    part = SpatialAggregator(**(SIZES | options))
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(std=0.3)
    return part.eval()


def features(batch: int = 2) -> list[Tensor]:
    return [torch.randn(batch, 2, 3, 5), torch.randn(batch, 4, 6, 7)]


def one_query(part: SpatialAggregator, context: Tensor, parts: list[Tensor]) -> Tensor:
    """By the formula, for one place of one image."""
    query = part.queries[0]
    for layer in part.layers:
        x = layer.merge(torch.cat([query, layer.context(context)]))
        seen = [parts[0], parts[1] + layer.places["1"]]
        key = torch.cat([layer.keys[n](layer.key_norms[n](one)) for n, one in enumerate(seen)])
        value = torch.cat([layer.values[n](layer.value_norms[n](one)) for n, one in enumerate(seen)])
        heads = zip(layer.query(layer.query_norm(x)).chunk(2), key.chunk(2, -1), value.chunk(2, -1), strict=True)
        read = torch.cat([(k @ q / 2).softmax(0) @ v for q, k, v in heads])
        query = query + layer.down(gelu(layer.up(layer.norm(x + layer.out(read)))))
    return part.output(query)


def test_each_query_reads_its_part_of_the_image() -> None:
    part, given = aggregator(), features()
    tokens = part(given)
    first, second = (project(one) for project, one in zip(part.inputs, given, strict=True))
    for row, column in ((0, 0), (1, 2)):
        near = [first[1, row, column][None], second[1, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(0, 1)]
        torch.testing.assert_close(tokens[1, row, column], one_query(part, first[1].mean(dim=(0, 1)), near))
    assert part.out_grid((7, 7)) == (2, 3)


def test_features_on_other_grids_are_resized() -> None:
    part, given = aggregator(), features(1)
    small = torch.randn(1, 3, 3, 7)
    projected = part.inputs[1](small).permute(0, 3, 1, 2)
    whole = interpolate(projected, (4, 6), mode="bilinear").permute(0, 2, 3, 1)
    torch.testing.assert_close(part._parts(part.inputs[1](small), 2), part._parts(whole, 2))
    assert part([given[0], small]).shape == (1, 2, 3, 10)


def test_gradients_dtypes_and_files(tmp_path) -> None:
    part, given = aggregator(), features(1)
    part(given).square().sum().backward()
    assert all(parameter.grad is not None for parameter in part.parameters())
    part.save_pretrained(tmp_path / "part")
    again = Block.from_pretrained(tmp_path / "part")
    assert torch.equal(again(given), part(given))
    assert again.bfloat16()([one.bfloat16() for one in given]).dtype == torch.bfloat16


def test_cambrian(tmp_path) -> None:
    part = aggregator(grid=(2, 2))
    tensors = {name: value.contiguous() for name, value in part.layouts[0].convert(part.state_dict(), part.config, to="theirs")}
    names = {"model.vision_query", "model.mm_projector_aux_1.3.weight", "model.mm_projector.2.bias"}
    sampler = "model.vision_sampler_0.layers.1"
    names |= {f"{sampler}.pos_embed_1", f"{sampler}.cross_attn.k_proj_1.0.bias", f"{sampler}.proj_out.linear_2.weight"}
    assert names <= tensors.keys()
    config = {
        "hidden_size": 10,
        "vision_hidden_size": 8,
        "num_query_group": 1,
        "query_num_list": [4],
        "mm_vision_tower_aux_token_len_list": [4, 16],
        "connector_depth": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    others = {"model.image_newline": torch.zeros(10), "model.vision_sampler_layers.0.x": torch.zeros(1)}
    save_file(tensors | others, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = SpatialAggregator.from_pretrained(tmp_path, in_dims=(5, 7), num_heads=2)
    given = features()
    assert torch.equal(again(given), part(given))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": (1,)}, "accepted: one of each for every encoder"),
        ({"in_dims": (), "windows": ()}, r"in_dims is \(\)"),
        ({"windows": (1, 0)}, "windows of at least 1"),
        ({"num_heads": 3}, "hidden_dim is 8, num_heads 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        aggregator(**options)


def test_features_of_other_encoders_are_refused() -> None:
    with pytest.raises(ValueError, match=r"accepted: one \(B, rows, columns, C\) for each C of \(5, 7\)"):
        aggregator()(features()[:1])
    with pytest.raises(ValueError, match="features have shapes"):
        aggregator()(features()[::-1])
