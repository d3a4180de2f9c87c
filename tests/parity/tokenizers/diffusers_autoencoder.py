"""Autoencoders in diffusers' own layout; their numbers are compared with diffusers in tests/tokenizers."""

from mmblocks.tokenizers.diffusers_autoencoder import DiffusersAutoencoder

MANIFESTS = {"emu2_gen_vae": [(DiffusersAutoencoder, "diffusers")]}
