"""Emu2's, Emu2-Chat's and Emu2-Gen's fronts; see ``models.emu.front``."""

from dataclasses import dataclass, replace
from typing import cast

from mmblocks.generation.options import Generation
from mmblocks.layers.categorical import GREEDY
from mmblocks.models.emu.format import EmuFormat
from mmblocks.models.emu.front import CHAT, PLAIN, EmuGenFront
from mmblocks.models.emu.images import EmbeddingImages
from mmblocks.models.emu2.format import EMU2, EMU2_CHAT
from mmblocks.models.emu2.images import Emu2Gen
from mmblocks.models.emu2.model import Emu2
from mmblocks.pixels.diffusion_decoder import DiffusionDecoder
from mmblocks.prompts.fronts import ReadingFront
from mmblocks.prompts.request import Components

EMU2_FRONT = ReadingFront(format=PLAIN, options=Generation(max_tokens=64, sampling=GREEDY))
"""Emu2, which goes on with text and images as text. The authors' code searches with five beams.

Source: Emu2 (arXiv 2312.13286; baaivision/Emu)."""

EMU2_CHAT_FRONT = replace(EMU2_FRONT, format=replace(CHAT, default_system=EMU2_CHAT.system[""]))
"""Emu2-Chat: conversations about images. ``EMU2_CHAT.system["grounding"]`` as the system's message is for boxes."""


@dataclass(frozen=True, kw_only=True)
class Emu2GenFront(EmuGenFront):
    """Emu2-Gen: images of texts and images.

    Source: Emu2 (arXiv 2312.13286; baaivision/Emu).

    Examples:
        >>> from mmblocks.models import Emu2GenFront
        >>> Emu2GenFront().format.size
        (1024, 1024)
    """

    format: EmuFormat = EMU2

    def painter(self, components: Components) -> EmbeddingImages:
        """The model and its decoder as one."""
        return Emu2Gen(model=cast(Emu2, components.model), decoder=cast(DiffusionDecoder, components.decoder))
