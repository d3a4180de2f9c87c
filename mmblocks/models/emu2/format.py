"""How Emu2, Emu2-Chat and Emu2-Gen are prompted, as data; see ``models.emu.format``."""

from dataclasses import replace

from mmblocks.models.emu.format import EmuFormat

_NAMES = (
    *("<unk>", "<s>", "</s>"),
    *("[PAD]", "[IMG]", "[/IMG]", "<image>", "[gIMG]", "[/gIMG]", "[EOC]", "[VIDEO]", "<grounding>"),
    *("<phrase>", "</phrase>", "<object>", "</object>", "</delimiter_of_multi_objects/>", "<REC>"),
)
_NUM_PATCHES = 257
_IDS = {
    **{name: index if index < 3 else 32000 + index - 3 for index, name in enumerate(_NAMES)},
    **{f"<patch_index_{place:04d}>": 32015 + place for place in range(_NUM_PATCHES)},
}

EMU2 = EmuFormat(
    ids=_IDS,
    image_tokens=64,
    frame_tokens=64,
    video="[VIDEO]",
    frame_input="frame",
    image_size=(448, 448),
    size=(1024, 1024),
    guidance=3.0,
)
"""Emu2 and Emu2-Gen, which read plain text and images. Frames have the places of ``[gIMG]`` in the authors' code, images those of
``<image>``; nothing is read of either id."""

EMU2_CHAT = replace(
    EMU2,
    ids={**_IDS, "[USER]": 32272, "[ASSISTANT]": 32273},
    image_tokens=256,
    system={
        "": "You are a helpful assistant, dedicated to delivering comprehensive and meticulous responses.",
        "grounding": "You are a helpful assistant, dedicated to provide concise and efficient answers.",
    },
)
"""Emu2-Chat. Where it is about "grounding", ``<grounding>`` follows the last ``[ASSISTANT]:``, and boxes are written as
``<patch_index_...>`` of coordinates from 0 to 224."""

EMU2_IDS, EMU2_CHAT_IDS = EMU2.ids, EMU2_CHAT.ids
"""What the authors' code adds to LLaMA's tokenizer when it runs, beside what it holds."""
