"""Fronts of models that read images and answer with text: EVE, EVEv2 and NEO."""

from dataclasses import replace

from mmblocks.generation.options import Generation
from mmblocks.layers.categorical import Sampling
from mmblocks.prompts.chat_format import ChatFormat
from mmblocks.prompts.fronts import ReadingFront

_VICUNA = ChatFormat(
    begin="<s>",
    system="{} ",
    default_system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    user="USER: {} ",
    assistant="ASSISTANT: {}</s>",
    reply="ASSISTANT:",
    picture="{}\n",
    pictures_first=True,
    stop=("</s>",),
)

EVE1_FRONT = ReadingFront(format=_VICUNA, options=Generation(max_tokens=1024, sampling=Sampling(temperature=0.2)))
"""EVE-7B and EVE-7B-HD. Source: baaivision/EVE, EVEv1: its conversation "eve_v1" and evaluation."""

EVE2_FRONT = replace(
    EVE1_FRONT, format=replace(_VICUNA, begin="", assistant="ASSISTANT: {}<|im_end|>", stop=("<|im_end|>", "<|endoftext|>"))
)
"""EVE-7B-HD-v2.0. Source: baaivision/EVE, EVEv2: its conversation "qwen2"."""

NEO_FRONT = ReadingFront(
    format=ChatFormat(
        system="<|im_start|>system\n{}<|im_end|>\n",
        user="<|im_start|>user\n{}<|im_end|>\n",
        assistant="<|im_start|>assistant\n{}<|im_end|>\n",
        reply="<|im_start|>assistant\n",
        picture="<img>{}</img>\n",
        pictures_first=True,
        stop=("<|im_end|>",),
    ),
    options=Generation(max_tokens=4096, sampling=Sampling(temperature=0)),
    bidirectional=True,
)
"""NEO's chat models. Source: EvolvingLMMs-Lab/NEO, its conversation "neo1_0"."""
