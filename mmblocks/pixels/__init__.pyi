"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.pixels.conditional_unet import ConditionalUNet as ConditionalUNet
from mmblocks.pixels.diffusers_denoiser import DiffusersDenoiser as DiffusersDenoiser
from mmblocks.pixels.diffusion_decoder import DiffusionDecoder as DiffusionDecoder
from mmblocks.pixels.state_generator import StateGenerator as StateGenerator
