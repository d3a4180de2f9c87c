import json

import pytest
import torch
from safetensors.torch import save_file

from mmblocks import Block
from mmblocks.encoders.eva_clip_text import EVACLIPText

SIZES = {"embed_dim": 10, "dim": 24, "num_layers": 2, "num_heads": 2, "context_length": 9}
BEGIN, END = 49406, 49407


def text(**options) -> EVACLIPText:
    torch.manual_seed(0)
    return EVACLIPText(**(SIZES | options)).eval()


def test_texts_to_ids_to_embeddings(tmp_path) -> None:
    tower = text()
    ids = tower.tokenize(["A photo of a cat", " dog "])
    assert ids.tolist() == [[BEGIN, 320, 1125, 539, 320, 2368, END, 0, 0], [BEGIN, 1929, END, 0, 0, 0, 0, 0, 0]]
    embeddings = tower(ids)
    assert embeddings.shape == (2, 10) and tower.tokens(ids).shape == (2, 9, 24)
    last = tower.tokens(ids)[[0, 1], [6, 2]]
    torch.testing.assert_close(embeddings, last @ tower.model.text_projection)
    # A place sees those before it, so that nothing after the end matters.
    changed = ids.clone()
    changed[1, 3:] = 5
    torch.testing.assert_close(tower(changed), embeddings)
    embeddings.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in tower.parameters())
    tower.save_pretrained(tmp_path / "text")
    torch.testing.assert_close(Block.from_pretrained(tmp_path / "text")(ids), embeddings)
    assert Block.from_pretrained(tmp_path / "text", dtype=torch.bfloat16)(ids).dtype == torch.bfloat16


def test_places_may_see_all_others() -> None:
    tower = text(causal=False)
    ids = tower.tokenize("dog")
    before = tower(ids)
    ids[0, 3:] = 5
    assert not torch.allclose(tower(ids), before)


def test_same_numbers_as_transformers(tmp_path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=99, hidden_size=24, intermediate_size=96, projection_dim=10, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=9, hidden_act="gelu", eos_token_id=98, bos_token_id=97, pad_token_id=0,
    )  # fmt: skip
    theirs = CLIPTextModelWithProjection(config).eval()
    (tmp_path / "config.json").write_text(json.dumps({"projection_dim": 10, "text_config": config.to_dict()}))
    save_file({name: value.contiguous() for name, value in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    ours = EVACLIPText.from_pretrained(tmp_path)
    ids = torch.randint(1, 97, (3, 9))
    ids[[0, 1, 2], [8, 4, 1]] = 98
    torch.testing.assert_close(ours(ids), theirs(input_ids=ids).text_embeds)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tower: tower.tokenize([]), "accepted: at least one, and none that is empty"),
        (lambda tower: tower.tokenize(["cat", " "]), "none that is empty"),
        (lambda tower: tower.tokenize("one two three four five six seven eight"), "has 10 tokens.* accepted: up to 9"),
        (lambda tower: text(vocab_size=99).tokenize("cat"), "vocab_size is 99.* accepted: ids"),
        (lambda tower: tower(torch.zeros(1, 8, dtype=torch.long)), r"shape \(1, 8\); accepted: \(B, 9\)"),
        (lambda tower: tower(torch.full((1, 9), 49408)), r"ids lie in \[49408, 49408\]; accepted: \[0, 49407\]"),
        (lambda tower: text(num_heads=5), "heads that divide the width"),
    ],
)
def test_what_does_not_fit_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(text())


def test_long_texts_are_cut_if_asked() -> None:
    ids = text().tokenize("one two three four five six seven eight", truncate=True)
    assert ids.shape == (1, 9) and ids[0, -1] == END
