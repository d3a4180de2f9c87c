"""A visual tokenizer learns from real photographs, and rebuilds photographs that it has never seen.

Crops of 64 x 64 pixels become 16 x 16 codes out of 512. The tokenizer begins as an autoencoder; k-means lays the codebook
where its features are; codes that nothing chooses move to where features are. With --gan a discriminator joins late.
Interrupted, it goes on with --resume, bit by bit as if it had never stopped.

    python examples/train_tokenizer.py [--out demo] [--steps 3000] [--resume] [--gan]
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

import mmblocks as mm
from mmblocks.training.adversarial import PatchDiscriminator
from mmblocks.training.image_metrics import psnr, ssim
from mmblocks.training.tokenizer import TokenizerTrainer
from mmblocks.training.tokenizer_recipe import TokenizerRecipe

from fit import DEVICE
from photos import crops_from, load_photos
from pictures import report, show, show_curves

BATCH, SIDE, NUM_CODES, SAVE_EVERY = 16, 64, 512, 250


def build_trainer(num_steps: int, gan: bool) -> TokenizerTrainer:
    tokenizer = mm.tokenizers.ConvVQ(channels=(32, 64), num_codes=NUM_CODES, code_dim=16).to(DEVICE)
    recipe = TokenizerRecipe(
        lr=2e-3,
        betas=(0.9, 0.99),
        warm_up=50,
        decay_steps=num_steps,
        kmeans_at=num_steps // 30,
        revive_every=50,
        revive_until=num_steps * 8 // 10,
        gan_start=num_steps * 6 // 10,
        gan_weight=0.2,
        discriminator_lr=5e-4,
        lecam=0.05,
    )
    return TokenizerTrainer(tokenizer, recipe=recipe, discriminator=PatchDiscriminator(channels=32, num_layers=2) if gan else None)


def train(trainer: TokenizerTrainer, photos: list[Tensor], num_steps: int, folder: Path) -> list[dict[str, float]]:
    """Up to ``num_steps`` in all, saved now and then; gives back the figures of all steps, earlier ones included."""
    log = folder / "steps.jsonl"
    lines = log.read_text().splitlines()[: trainer.num_steps] if trainer.num_steps else []
    history = [json.loads(line) for line in lines]

    def after_step(figures: dict[str, float]) -> None:
        history.append(figures)
        if trainer.num_steps % SAVE_EVERY == 0 or trainer.num_steps == num_steps:
            log.write_text("".join(json.dumps(step) + "\n" for step in history))
            trainer.save(folder)

    crops = crops_from(trainer.num_steps, photos, BATCH, SIDE)
    trainer.fit(crops, max(num_steps - trainer.num_steps, 0), after_step=after_step)
    return history


def fitted(photo: Tensor) -> Tensor:
    """A photograph as a batch of one, cut to sides of whole tokens."""
    height, width = (side - side % 4 for side in photo.shape[1:])
    return photo[None, :, :height, :width]


@torch.no_grad()
def draw(tokenizer: mm.tokenizers.ConvVQ, photos: list[Tensor], file: Path) -> None:
    """Held-out photographs, and what the tokenizer makes of their codes: two squares of each."""
    tokenizer.eval()
    squares = torch.cat(
        [photo[:, :, top : top + 128, left : left + 128] for photo in photos for top, left in ((60, 60), (140, 250))]
    )
    rebuilt = tokenizer.decode(tokenizer.encode(squares.to(DEVICE)).ids).cpu()
    quality = zip(psnr(rebuilt, squares).tolist(), ssim(rebuilt, squares).tolist(), strict=True)
    titles = [["original"] * len(squares), [f"{decibels:.1f} dB, SSIM {similarity:.2f}" for decibels, similarity in quality]]
    show([list(squares), list(rebuilt)], file, titles=titles, row_names=["held out", "rebuilt"])


def draw_curves(history: list[dict[str, float]], file: Path) -> None:
    names = ["l1", "commitment", "usage", "perplexity", "discriminator"]
    names = [name for name in names if name in history[-1]]
    show_curves({name: [step.get(name, math.nan) for step in history] for name in names}, file)


def block_means(photos: list[Tensor]) -> float:
    """PSNR of the mean colours of 4 x 4 pixels, smoothly enlarged: as many numbers as codes, but of 24 bits, not 9."""
    rebuilt = [interpolate(avg_pool2d(photo, 4), scale_factor=4, mode="bicubic").clamp(0, 1) for photo in photos]
    return sum(float(psnr(pair[0], pair[1])) for pair in zip(rebuilt, photos, strict=True)) / len(photos)


def main(out: Path, num_steps: int, resume: bool, gan: bool) -> None:
    name = "photo_tokenizer_gan" if gan else "photo_tokenizer"
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    photos, held_out = load_photos()
    held_out = [fitted(photo) for photo in held_out]
    trainer = TokenizerTrainer.resume(folder, device=DEVICE) if resume else build_trainer(num_steps, gan)
    history = train(trainer, photos, num_steps, folder)

    quality = trainer.evaluate(held_out)
    draw(trainer.tokenizer, held_out, out / f"{name}.png")
    draw_curves(history, out / f"{name}_losses.png")
    figures = {
        "steps": trainer.num_steps,
        "held-out PSNR, dB": round(quality["psnr"], 2),
        "held-out SSIM": round(quality["ssim"], 4),
        "PSNR of 4 x 4 block means, dB": round(block_means(held_out), 2),
        f"codes of {NUM_CODES} used in training recently": round(history[-1]["usage"] * NUM_CODES),
        "perplexity in training recently": round(history[-1]["perplexity"], 1),
        f"codes of {NUM_CODES} used on held-out photographs": round(quality["usage"] * NUM_CODES),
        "perplexity on held-out photographs": round(quality["perplexity"], 1),
    }
    report(f"Tokenizer of photographs{', with a discriminator' if gan else ''}", figures, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for pictures and summary.json")
    parser.add_argument("--steps", type=int, default=3000, help="training steps in all")
    parser.add_argument("--resume", action="store_true", help="go on with the training saved in the folder")
    parser.add_argument("--gan", action="store_true", help="let a discriminator join for the last steps")
    arguments = parser.parse_args()
    main(arguments.out, arguments.steps, arguments.resume, arguments.gan)
