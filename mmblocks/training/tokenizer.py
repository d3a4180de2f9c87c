"""Trains a visual tokenizer: reconstruction, the bottleneck's own losses, a perceptual loss, a discriminator.

Shapes: B images, H and W pixels (T frames).
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer

from mmblocks.block import Block
from mmblocks.tokenizers.bottlenecks.codebooks.all_processes import several_processes
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer
from mmblocks.training import tokenizer_state
from mmblocks.training.adversarial import Adversary
from mmblocks.training.image_metrics import CodeUsage, psnr, ssim
from mmblocks.training.tokenizer_codebook import CodebookCare
from mmblocks.training.tokenizer_losses import (
    NotFiniteError,
    Perceptual,
    bfloat16_autocast,
    bottleneck_loss,
    check_autocast,
    check_finite,
    frames,
    last_layer,
    reconstruction_losses,
)
from mmblocks.training.tokenizer_recipe import TokenizerRecipe


class TokenizerTrainer:
    """Trains any ``VisualTokenizer``, and can be saved and resumed at any step.

        trainer = TokenizerTrainer(tokenizer, recipe=TokenizerRecipe(kmeans_at=100, revive_every=100))
        trainer.fit(batches, 1000)                      # batches of pixels (B, 3, H, W) in [0, 1]
        trainer.save("my-training")
        TokenizerTrainer.resume("my-training").fit(more_batches, 1000)
        trainer.tokenizer.eval().save_pretrained("my-tokenizer")

    A batch in which NaN or infinity turns up, in the pixels or anywhere on the way, is skipped with a warning: no optimizer steps,
    and no codebook sees features that are not finite. Parameters that do not require gradients stay as they are.

    Args:
        tokenizer: what to train, in float32, on the device where it shall be trained.
        recipe: losses, weights and schedules.
        discriminator: images (B, 3, H, W) in [0, 1] -> scores, such as a ``PatchDiscriminator``; None for none.
        perceptual: images, images -> how different they look, (B,) or a scalar; None for none.

    Attributes:
        num_steps: batches seen so far, skipped ones included.
        num_skipped: batches skipped so far.

    It trains in one process: several would reach k-means and revival, and skip batches, each at another step.

    Raises:
        RuntimeError: in a process group of several.
        TypeError: ``kmeans_at`` or ``revive_every`` for a bottleneck that cannot do it.
        ValueError: a tokenizer in half precision or without anything to train, a ``last_layer`` that is not there, or autocast
            where the device has no bfloat16.

    Source: VQGAN (arXiv 2012.09841; CompVis/taming-transformers), Open-MAGVIT2 (TencentARC/SEED-Voken). Unlike there, tokenizer
    and discriminator step together, from one forward pass of the tokenizer.

    Examples:
        >>> import torch
        >>> from mmblocks.tokenizers import ConvVQ
        >>> from mmblocks.training import TokenizerRecipe, TokenizerTrainer
        >>> tokenizer = ConvVQ(channels=(8, 8), num_codes=16, code_dim=4)
        >>> trainer = TokenizerTrainer(tokenizer, recipe=TokenizerRecipe(lr=1e-2))
        >>> pixels = torch.rand(4, 3, 8, 8)
        >>> losses = [trainer.step(pixels) for _ in range(10)]
        >>> losses[-1]["l1"] < losses[0]["l1"], trainer.num_steps
        (True, 10)
    """

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        *,
        recipe: TokenizerRecipe | None = None,
        discriminator: Block | None = None,
        perceptual: Perceptual | None = None,
    ) -> None:
        if several_processes():
            raise RuntimeError(f"TokenizerTrainer trains in one process; a group of {distributed.get_world_size()} is initialised")
        self.recipe = recipe or TokenizerRecipe()
        self.tokenizer = tokenizer.train()
        self.perceptual = perceptual
        self.device, self.dtype = _placement(tokenizer)
        check_autocast(self.recipe.autocast, self.device)
        self.optimizer = self._adamw(tokenizer, self.recipe.optimizer.lr)
        self.adversary: Adversary | None = None
        if discriminator is not None:
            discriminator.to(self.device, self.dtype).train()
            settings = self.recipe.adversary
            rate = self.recipe.optimizer.lr if settings.discriminator_lr is None else settings.discriminator_lr
            last = last_layer(tokenizer, settings.last_layer)
            optimizer = self._adamw(discriminator, rate)
            self.adversary = Adversary(discriminator, optimizer, last, settings, autocast=self.recipe.autocast)
        self.generator = torch.Generator(self.device).manual_seed(self.recipe.seed)
        self.codebook = CodebookCare(tokenizer, self.recipe.codebook, self.device, self.generator)
        self.num_steps = 0
        self.num_skipped = 0

    @property
    def optimizers(self) -> list[AdamW]:
        """The tokenizer's, and the discriminator's if there is one."""
        return [self.optimizer] if self.adversary is None else [self.optimizer, self.adversary.optimizer]

    def step(self, pixels: Float[Tensor, "B 3 *size"]) -> dict[str, float]:
        """Learns from one batch of images, or clips where the tokenizer takes them.

        Returns:
            By name: ``loss``, the tokenizer's weighted sum; each loss, unweighted; ``grad_norm``, before it is limited; the
            ``usage`` and ``perplexity`` of codes recently; how many were ``revived``; ``skipped``, which is 1 for a batch that
            was, and whose loss is NaN.

        Raises:
            TypeError, ValueError: pixels that the tokenizer does not take, or a bottleneck's loss that has no weight.
        """
        if not isinstance(pixels, Tensor):
            raise TypeError(f"pixels are a {type(pixels).__name__}; accepted: a tensor (B, 3, H, W) or (B, 3, T, H, W)")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["full_rate"] * self.recipe.rate(self.num_steps)
        try:
            figures = self._learn(pixels.to(self.device, self.dtype if pixels.is_floating_point() else None))
        except NotFiniteError as error:
            warnings.warn(f"step {self.num_steps} is skipped: {error}", stacklevel=2)
            self.num_skipped += 1
            figures = {"loss": float("nan"), "skipped": 1.0}
        self.num_steps += 1
        return figures

    def fit(
        self,
        batches: Iterable[Tensor],
        num_steps: int,
        *,
        after_step: Callable[[dict[str, float]], None] | None = None,
    ) -> list[dict[str, float]]:
        """Learns from ``num_steps`` more batches, with a progress bar where there is a terminal to show it.

        Args:
            batches: of pixels, as for ``step``. After resuming, those that follow on the ones already seen.
            num_steps: how many of them to take.
            after_step: called with what each step returned, for instance to save now and then.

        Returns:
            What each step returned.
        """
        from tqdm import tqdm  # here, since nothing else needs it; huggingface-hub brings it

        history: list[dict[str, float]] = []
        with tqdm(total=self.num_steps + num_steps, initial=self.num_steps, desc="tokenizer", disable=None) as bar:
            # The range comes first, so that no batch is taken in vain.
            for _, pixels in zip(range(num_steps), batches, strict=False):
                history.append(self.step(pixels))
                shown = {key: f"{history[-1][key]:.3g}" for key in ("loss", "usage", "perplexity") if key in history[-1]}
                bar.set_postfix(shown, refresh=False)
                bar.update()
                if after_step is not None:
                    after_step(history[-1])
        if len(history) < num_steps:
            warnings.warn(f"the batches ended after {len(history)} of {num_steps} steps", stacklevel=2)
        return history

    @torch.no_grad()
    def evaluate(self, pixels: Tensor | Iterable[Tensor], **options: object) -> dict[str, float]:
        """How well images are rebuilt, in evaluation mode and full precision; nothing is learned, no later draw changes.

        From codes, always: before k-means has laid the codebook they mean nothing.

        Args:
            pixels: a batch (B, 3, H, W) or (B, 3, T, H, W), or several, of any sizes that the tokenizer takes.
            options: keywords of the tokenizer's ``encode``. What it draws is the same each time.

        Returns:
            ``psnr`` in dB and ``ssim``, means over images (frames); with codes, also their ``usage`` and ``perplexity``.

        Raises:
            TypeError, ValueError: pixels that the tokenizer does not take, sides of less than 11 pixels, or no batch at all.
        """
        usage = CodeUsage(self.tokenizer.codebook_sizes, self.device)
        scores = []
        with _evaluating(self.tokenizer), torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.recipe.seed)
            for batch in [pixels] if isinstance(pixels, Tensor) else pixels:
                real = batch.to(self.device, self.dtype if batch.is_floating_point() else None)
                latents = self.tokenizer.encode(real, **options)
                pair = frames(real), frames(self.tokenizer.decode(latents))
                scores.append(torch.stack([psnr(*pair), ssim(*pair)]))
                if latents.ids is not None:
                    usage.add(latents.ids, latents.lengths)
        if not scores:
            raise ValueError("pixels holds no batch; accepted: at least one")
        quality = dict(zip(("psnr", "ssim"), torch.cat(scores, dim=1).mean(dim=1).tolist(), strict=True))
        return quality | {name: float(value) for name, value in usage.figures().items()}

    def save(self, folder: str | Path) -> None:
        """Writes all that resuming needs, in one step: a process that is killed leaves the old content whole.

        What it leaves beside the folder is removed by the next save.

        The subfolder ``tokenizer`` is one that ``Block.from_pretrained`` reads.
        """
        tokenizer_state.save(self, Path(folder))

    @classmethod
    def resume(cls, folder: str | Path, *, perceptual: Perceptual | None = None, device: torch.device | str | None = None) -> Self:
        """The trainer as it was saved; on a CPU it goes on, bit by bit, as if it had never stopped.

        Every file is compared with its checksum first; what an earlier version saved, which noted none, is taken as it is.
        Sets the state of torch's global generators too. Batches are no part of what is saved: hand in those that follow.

        Args:
            folder: what ``save`` wrote.
            perceptual: the perceptual loss again, if there was one; code is not saved.
            device: where to train, of the kind that the training was saved on; None for torch's default.

        Raises:
            FileNotFoundError: no trainer was saved there.
            ValueError: the perceptual loss is missing, or a file is not what was saved.
        """
        saved = tokenizer_state.read(Path(folder), torch.get_default_device() if device is None else torch.device(device))
        if saved.notes.perceptual and perceptual is None:
            raise ValueError(f"{folder} was trained with a perceptual loss; hand it in again: resume(..., perceptual=...)")
        trainer = cls(saved.tokenizer, recipe=saved.notes.recipe, discriminator=saved.discriminator, perceptual=perceptual)
        tokenizer_state.restore(trainer, saved)
        return trainer

    def _learn(self, pixels: Tensor) -> dict[str, float]:
        """One step of both optimizers, or of none."""
        check_finite(pixels=pixels)
        adversary = self.adversary if self.num_steps >= self.recipe.adversary.gan_start else None
        with bfloat16_autocast(self.recipe.autocast, self.device):
            latents, features = self.codebook.encode(pixels)
            rebuilt = self.tokenizer.decode(latents)
        _check_shape(rebuilt, pixels)
        rebuilt = rebuilt.to(self.dtype)
        losses, total = reconstruction_losses(pixels, rebuilt, self.recipe.losses, self.perceptual)
        check_finite(reconstruction_loss=total)
        if adversary is not None:
            adversarial, weighted = adversary.generator_loss(rebuilt, total)
            losses, total = losses | adversarial, total + weighted
        if latents.loss is not None:
            demanded = self.recipe.losses.loss_weights or {}
            total = total + bottleneck_loss(latents.loss, {**self.tokenizer.loss_weights, **demanded}, demanded)
        losses |= {"loss": total, **(latents.loss or {}), "grad_norm": self._backward(total, self.optimizer)}
        if adversary is not None:
            judged, weighted = adversary.discriminator_loss(pixels, rebuilt.detach())
            losses |= judged | {"discriminator_grad_norm": self._backward(weighted, adversary.optimizer)}
            adversary.optimizer.step()
        self.optimizer.step()
        revived = self.codebook.after_step(latents, features, self.num_steps)
        losses |= {} if latents.ids is None else self.codebook.usage.figures()
        numbers = torch.stack([value.detach().float() for value in losses.values()]).tolist()  # waits for the device once
        return dict(zip(losses, numbers, strict=True)) | {"revived": float(revived), "skipped": 0.0}

    def _backward(self, loss: Tensor, optimizer: Optimizer) -> Tensor:
        """Gives this optimizer's parameters, and no others, gradients that are not too long; returns how long they were."""
        check_finite(loss=loss)
        # What has been frozen since the optimizer was made gets none.
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]
        optimizer.zero_grad()
        loss.backward(inputs=parameters)
        limit = self.recipe.optimizer.max_grad_norm
        norm = clip_grad_norm_(parameters, float("inf") if limit is None else limit)
        check_finite(gradients=norm)
        return norm

    def _adamw(self, module: nn.Module, rate: float) -> AdamW:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        settings = self.recipe.optimizer
        optimizer = AdamW(parameters, lr=rate, betas=settings.betas, weight_decay=settings.weight_decay)
        optimizer.param_groups[0]["full_rate"] = rate
        return optimizer


def _placement(tokenizer: VisualTokenizer) -> tuple[torch.device, torch.dtype]:
    """Where, and in which precision, to train."""
    trainable = [parameter for parameter in tokenizer.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"the {type(tokenizer).__name__} has no parameter that requires gradients; accepted: at least one")
    dtypes = {parameter.dtype for parameter in trainable}
    if dtypes not in ({torch.float32}, {torch.float64}):
        names = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"the {type(tokenizer).__name__} has {names} parameters; accepted: float32 (see autocast in the recipe)")
    return trainable[0].device, trainable[0].dtype


def _check_shape(rebuilt: Tensor, pixels: Tensor) -> None:
    if rebuilt.shape != pixels.shape:
        raise ValueError(
            f"the tokenizer decodes pixels of shape {tuple(pixels.shape)} to {tuple(rebuilt.shape)}; accepted: one that decodes"
            " to the pixels it was given"
        )


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and then each submodule's own mode again."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
