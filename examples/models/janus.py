"""Janus-Pro: an answer about an image, and an image of a text, in one batch. Give it deepseek-ai/Janus-Pro-7B, or a folder."""

from dataclasses import replace

from tiny import NUM_CODES, QUESTION, SIZES, image_tokenizer, keep, pipeline

from mmblocks import ByteTokenizer, Pipeline
from mmblocks.models import Janus, JanusFront
from mmblocks.models.janus.prompts import JANUS_PRO_PROMPT
from mmblocks.pipelines import Chat, GenerateImage, Settings
from mmblocks.vocabulary import raster_format


def tiny() -> Pipeline:
    form = replace(JANUS_PRO_PROMPT, format=raster_format(2, 2, NUM_CODES), image_size=4)
    words = ByteTokenizer([form.bos, form.eos, form.pad, form.image_begin, form.image_end, form.user, form.assistant])
    vision = {"image_size": 32, "patch_size": 16, "dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16}
    model = Janus(vocab_size=words.vocab_size, num_codes=NUM_CODES, code_dim=4, vision=vision, **SIZES).eval()
    return Pipeline(front=JanusFront(prompt=form), model=model, text_tokenizer=words, image_tokenizer=image_tokenizer())


if __name__ == "__main__":
    settings = Settings(max_tokens=20, seed=0)
    answer, drawn = pipeline(tiny).run([Chat(QUESTION, settings), GenerateImage("a red bicycle", settings=settings)])
    print(answer.text)
    keep(drawn.images[0], "janus")
