"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.connectors.average_pool import AdaptivePool as AdaptivePool
from mmblocks.connectors.average_pool import AveragePool as AveragePool
from mmblocks.connectors.causal_former import CausalFormer as CausalFormer
from mmblocks.connectors.chain import ConnectorChain as ConnectorChain
from mmblocks.connectors.emu2 import Emu2DownProjection as Emu2DownProjection
from mmblocks.connectors.emu2 import Emu2UpProjection as Emu2UpProjection
from mmblocks.connectors.mlp import MLPProjector as MLPProjector
from mmblocks.connectors.perceiver import PerceiverResampler as PerceiverResampler
from mmblocks.connectors.pixel_shuffle import PixelShuffle as PixelShuffle
from mmblocks.connectors.qformer import QFormerConnector as QFormerConnector
from mmblocks.connectors.spatial_aggregator import SpatialAggregator as SpatialAggregator
from mmblocks.connectors.spatio_temporal_pool import SpatioTemporalPool as SpatioTemporalPool
from mmblocks.connectors.token_flex import TokenFlexProjector as TokenFlexProjector
