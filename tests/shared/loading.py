"""What the workers of a ``DataLoader`` read and use, in a module that each of them can import."""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmblocks import Decoder, LMHead, MultimodalModel, TextEmbedding, VisionTokens
from mmblocks.embedders import EVE2PatchEmbedding
from mmblocks.sequence.segments import Segment, codes, image, text, vectors
from mmblocks.sequence.tokens import ImageLayout
from tests.shared.tiny import FORMAT, VOCABULARY

WIDTH = 8


class Colours(nn.Module):
    """An embedder as a user writes it, without a base class: a token for each column, whatever the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3, WIDTH)

    def layout(self, height: int, width: int) -> ImageLayout:
        device = self.project.weight.device
        places = torch.stack([torch.zeros(width, dtype=torch.long, device=device)] * 2 + [torch.arange(width)], dim=-1)
        return ImageLayout(grid=places, kind=torch.zeros(width, dtype=torch.long))

    def forward(self, images: list[Tensor]) -> VisionTokens:
        layouts = [self.layout(*pixels.shape[1:]) for pixels in images]
        columns = torch.cat([pixels.mean(dim=1).T for pixels in images])
        number = torch.cat([torch.full_like(layout.kind, index) for index, layout in enumerate(layouts)])
        grid, kind = (torch.cat(column) for column in zip(*layouts, strict=True))
        return VisionTokens(self.project(columns), number, grid, kind)


def model() -> MultimodalModel:
    torch.manual_seed(0)
    stem = EVE2PatchEmbedding(dim=WIDTH, hidden_dim=4, patch_size=1, merge_size=1, max_size=4)
    return MultimodalModel(
        inputs={
            "text": TextEmbedding(vocab_size=VOCABULARY, dim=WIDTH),
            "vision": stem,
            "colours": Colours(),
            "latents": nn.Linear(2, WIDTH),
        },
        trunk=Decoder(dim=WIDTH, num_layers=1, num_heads=2, mlp_dim=8),
        outputs={"lm": LMHead(dim=WIDTH, vocab_size=VOCABULARY)},
    )


class Samples(Dataset[list[Segment]]):
    """Documents with images of odd sizes and of any shape, text, codes and latents."""

    sizes = ((3, 5), (1, 1), (7, 2), (4, 4), (3, 5), (5, 9), (2, 7))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> list[Segment]:
        source = torch.Generator().manual_seed(index)
        pixels = torch.rand(3, *self.sizes[index], generator=source)
        return [
            text("a picture: "),
            image(pixels, bidirectional=index % 2 == 0),
            image(pixels.mT, input="colours"),
            vectors(torch.rand(2, 1 + index, 2, generator=source), input="latents", bidirectional=True),
            codes(torch.randint(12, self.sizes[index], generator=source), FORMAT, target="lm", structure=True),
            text("x" * index + ".", target="lm"),
        ]
