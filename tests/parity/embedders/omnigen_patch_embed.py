"""OmniGen's two patch embeddings, of latents to be denoised and of input images: their parts of the published checkpoints."""

from mmblocks.embedders.linear_patches import LinearPatchEmbedding

MANIFESTS = {
    "omnigen_v1": [(LinearPatchEmbedding, "omnigen"), (LinearPatchEmbedding, "omnigen-input")],
    "omnigen_v1_diffusers": [
        (LinearPatchEmbedding, "omnigen-diffusers"),
        (LinearPatchEmbedding, "omnigen-diffusers-input"),
    ],
}
