import pytest
import torch

from mmblocks import Block, LMHead
from mmblocks.embedders import ClipEmbedder, EVE2PatchEmbedding, NEOPatchEmbedding

EMBEDDERS = {
    "neo": lambda: NEOPatchEmbedding(dim=8, hidden_dim=16),
    "eve": lambda: EVE2PatchEmbedding(dim=8, hidden_dim=16),  # class and newline tokens too
}


@pytest.mark.parametrize("kind", EMBEDDERS)
def test_frames_are_embedded_one_by_one_and_know_their_time(kind, tmp_path) -> None:
    torch.manual_seed(0)
    inner = EMBEDDERS[kind]().eval()
    embedder = ClipEmbedder(embedder=inner).eval()
    clips = [torch.rand(3, 3, 64, 32), torch.rand(3, 32, 32), torch.rand(1, 3, 32, 64), torch.rand(2, 3, 64, 32)]
    made = embedder(clips)
    for index, clip in enumerate(clips):
        frames = clip if clip.ndim == 4 else clip[None]
        own = made.image == index
        layout = embedder.layout(*clip.shape[-2:], len(frames))
        assert torch.equal(made.grid[own], layout.grid) and torch.equal(made.kind[own], layout.kind)
        torch.testing.assert_close(made.embeds[own], inner(list(frames)).embeds)
        one = inner.layout(*clip.shape[-2:])
        assert layout.grid[:, 0].tolist() == [time for time in range(len(frames)) for _ in one.kind]
        assert torch.equal(layout.grid[:, 1:], one.grid[:, 1:].repeat(len(frames), 1))
    assert torch.equal(embedder.layout(64, 32).grid, inner.layout(64, 32).grid)
    embedder.save_pretrained(tmp_path)
    assert torch.equal(Block.from_pretrained(tmp_path)(clips).embeds, made.embeds)


@pytest.mark.unchecked
def test_what_is_no_clip_is_refused() -> None:
    embedder = ClipEmbedder(embedder=EMBEDDERS["neo"]())
    for clips, message in (
        ([], "clips is empty"),
        ([torch.rand(0, 3, 32, 32)], "with a frame"),
        ([torch.rand(32, 32)], r"shape \(32, 32\); accepted: \(T, 3, H, W\)"),
        ([torch.rand(2, 1, 32, 32)], r"accepted: \(3, H, W\)"),
    ):
        with pytest.raises(ValueError, match=message):
            embedder(clips)
    with pytest.raises(ValueError, match="frames is 0"):
        embedder.layout(32, 32, 0)
    with pytest.raises(TypeError, match="embedder is a LMHead, which cannot be used here"):
        ClipEmbedder(embedder=LMHead(dim=4, vocab_size=4))
