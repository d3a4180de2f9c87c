"""Emu3's encoder and decoder: the convolutional ones frame by frame, and causal convolutions over the frames between them.

Shapes: B images or clips, T frames, H and W pixels; t, h and w tokens, D width of a token. An image has no T and no t.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmblocks.block import Block
from mmblocks.tokenizers.conv.blocks import channels_last
from mmblocks.tokenizers.conv.causal_conv import CausalConv3d, TemporalDownsample, TemporalResidualBlock, TemporalUpsample
from mmblocks.tokenizers.conv.conv_autoencoder import ConvDecoder, ConvEncoder

FRAME_PIXELS = 1024 * 1024
"""Pixels of the frames that go through the 2-d convolutions at once: those of the largest published image."""


class Emu3Encoder(Block):
    """``ConvEncoder`` on each frame; then time is shortened, residual blocks look back in it, and a convolution projects.

    An image is a clip in which it stands still for ``temporal_factor`` frames, and has one token in time, which is left out.
    Its 2-d convolutions run once; those of a clip run on ``FRAME_PIXELS`` at a time, so that long clips need no more memory.

    Args:
        code_dim: width of a token, and of all that is after the 2-d convolutions.
        channels, multipliers, attention_levels: see ``ConvEncoder``.
        num_blocks: residual blocks a level, and of those that look back in time.
        temporal_factor: frames that make one token in time; a power of two.
    """

    def __init__(
        self,
        *,
        code_dim: int = 4,
        channels: int = 256,
        multipliers: tuple[int, ...] = (1, 2, 2, 4),
        num_blocks: int = 2,
        attention_levels: tuple[int, ...] = (3,),
        temporal_factor: int = 4,
    ) -> None:
        super().__init__()
        self.temporal_factor = temporal_factor
        self.spatial = ConvEncoder(
            channels=channels,
            multipliers=multipliers,
            num_blocks=num_blocks,
            attention_levels=attention_levels,
            latent_channels=code_dim,
            code_dim=None,
        )
        self.shorten = nn.ModuleList(TemporalDownsample(code_dim) for _ in range(num_halvings(temporal_factor)))
        self.look_back = nn.ModuleList(TemporalResidualBlock(code_dim) for _ in range(num_blocks))
        self.project = CausalConv3d(code_dim, code_dim, (3, 1, 1))

    def forward(self, pixels: Float[Tensor, "B 3 *size"]) -> Float[Tensor, "B *grid D"]:
        """Pixels, normalised, (B, 3, H, W) or (B, 3, T, H, W), to features (B, h, w, D) or (B, t, h, w, D)."""
        features = self.project(self.maps(pixels)).movedim(1, -1)
        return features.squeeze(1) if pixels.ndim == 4 else features

    def maps(self, pixels: Float[Tensor, "B 3 *size"]) -> Float[Tensor, "B D t h w"]:
        """What is projected."""
        if pixels.ndim == 4:
            still = self._on_each_frame(pixels)
            clips = still[:, :, None].expand(-1, -1, self.temporal_factor, -1, -1)
        else:
            frames = self._on_each_frame(pixels.transpose(1, 2).flatten(0, 1))
            clips = frames.unflatten(0, (len(pixels), -1)).transpose(1, 2)
        for layer in (*self.shorten, *self.look_back):
            clips = layer(clips)
        return clips

    def _on_each_frame(self, frames: Tensor) -> Tensor:
        pieces = frames.split(frames_at_once(*frames.shape[-2:]))
        return torch.cat([self.spatial(piece).movedim(-1, 1) for piece in pieces])


class Emu3Decoder(Block):
    """Residual blocks that look back in time, which is then lengthened; then ``ConvDecoder`` on each frame.

    The codes' own vectors go the same way in time as the features that are decoded, and condition every norm. Of an image, a
    clip of ``temporal_factor`` frames, the first is decoded.

    Args:
        code_dim, channels, multipliers, num_blocks, attention_levels, temporal_factor: as in ``Emu3Encoder``.
    """

    def __init__(
        self,
        *,
        code_dim: int = 4,
        channels: int = 256,
        multipliers: tuple[int, ...] = (1, 2, 2, 4),
        num_blocks: int = 2,
        attention_levels: tuple[int, ...] = (3,),
        temporal_factor: int = 4,
    ) -> None:
        super().__init__()
        self.code_dim = code_dim
        self.downsampling = 2 ** (len(multipliers) - 1)
        self.project = CausalConv3d(code_dim, code_dim, (3, 1, 1))
        self.look_back = nn.ModuleList(TemporalResidualBlock(code_dim) for _ in range(num_blocks))
        self.lengthen = nn.ModuleList(TemporalUpsample(code_dim) for _ in range(num_halvings(temporal_factor)))
        self.spatial = ConvDecoder(
            channels=channels,
            multipliers=multipliers,
            num_blocks=num_blocks,
            attention_levels=attention_levels,
            latent_channels=code_dim,
            code_dim=None,
            condition_dim=code_dim,
        )

    def forward(self, features: Float[Tensor, "B *grid D"]) -> Float[Tensor, "B 3 *size"]:
        """Codes (B, h, w, D) or (B, t, h, w, D) to pixels, normalised.

        Raises:
            ValueError: features of another shape.
        """
        if features.ndim not in (4, 5) or features.shape[-1] != self.code_dim:
            accepted = f"(B, h, w, {self.code_dim}), or (B, t, h, w, {self.code_dim}) for clips"
            raise ValueError(f"features have shape {tuple(features.shape)}; accepted: {accepted}")
        is_image = features.ndim == 4
        vectors = (features[:, None] if is_image else features).movedim(-1, 1)
        maps, condition = self.maps(vectors)
        if is_image:
            return self._on_each_frame(maps[:, :, 0], condition[:, :, 0])
        folded = (clips.transpose(1, 2).flatten(0, 1) for clips in (maps, condition))
        return self._on_each_frame(*folded).unflatten(0, (len(features), -1)).transpose(1, 2)

    def maps(self, vectors: Float[Tensor, "B D t h w"]) -> tuple[Float[Tensor, "B D T h w"], Float[Tensor, "B D T h w"]]:
        """What is decoded, and what conditions it, for each frame."""
        both = torch.cat([self.project(vectors), vectors])
        for layer in (*self.look_back, *self.lengthen):
            both = layer(both)
        maps, condition = both.chunk(2)
        return maps, condition

    def _on_each_frame(self, maps: Tensor, condition: Tensor) -> Tensor:
        step = frames_at_once(*(self.downsampling * side for side in maps.shape[-2:]))
        pieces = zip(maps.split(step), condition.split(step), strict=True)
        return torch.cat([self.spatial(channels_last(piece), beside) for piece, beside in pieces])


def frames_at_once(height: int, width: int) -> int:
    """How many frames of this size hold ``FRAME_PIXELS``; one at least."""
    return max(1, FRAME_PIXELS // max(1, height * width))


def num_halvings(factor: int) -> int:
    """How often the number of frames is halved.

    Raises:
        ValueError: a factor that is no power of two.
    """
    if factor < 1 or factor & (factor - 1):
        raise ValueError(f"temporal_factor is {factor}; accepted: a power of two")
    return factor.bit_length() - 1
