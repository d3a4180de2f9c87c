"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.layers.attention.gated_cross_attention import GatedCrossAttention as GatedCrossAttention
from mmblocks.layers.attention.query_transformer import QFormer as QFormer
from mmblocks.layers.categorical import GREEDY as GREEDY
from mmblocks.layers.categorical import Sampling as Sampling
from mmblocks.layers.diffusion.denoising_samplers import DiffusersSampler as DiffusersSampler
from mmblocks.layers.diffusion.rectified_flow import RectifiedFlow as RectifiedFlow
from mmblocks.layers.diffusion.straight_flow import StraightFlow as StraightFlow
from mmblocks.layers.images.grid_positions import LearnedPositions as LearnedPositions
from mmblocks.layers.images.grid_positions import SinCosPositions as SinCosPositions
from mmblocks.layers.images.sincos_table import SinCosTable as SinCosTable
from mmblocks.layers.losses.balance import LossBalance as LossBalance
from mmblocks.layers.markers import Markers as Markers
from mmblocks.layers.reduction.token_folding import TokenShuffle as TokenShuffle
from mmblocks.layers.reduction.token_folding import TokenUnshuffle as TokenUnshuffle
from mmblocks.layers.soft_codes import SoftCodeEmbedding as SoftCodeEmbedding
from mmblocks.layers.towers.eva import EvaTower as EvaTower
