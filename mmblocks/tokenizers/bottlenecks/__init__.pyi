"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.tokenizers.bottlenecks.affine import AffineBottleneck as AffineBottleneck
from mmblocks.tokenizers.bottlenecks.clustering_vector_quantizer import ClusteringVectorQuantizer as ClusteringVectorQuantizer
from mmblocks.tokenizers.bottlenecks.dual import DualBottleneck as DualBottleneck
from mmblocks.tokenizers.bottlenecks.ema import EMAVectorQuantizer as EMAVectorQuantizer
from mmblocks.tokenizers.bottlenecks.finite_scalar import FiniteScalarQuantizer as FiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.gaussian import DiagonalGaussian as DiagonalGaussian
from mmblocks.tokenizers.bottlenecks.index_backpropagation import IndexBackpropagation as IndexBackpropagation
from mmblocks.tokenizers.bottlenecks.lookup_free import LookupFreeQuantizer as LookupFreeQuantizer
from mmblocks.tokenizers.bottlenecks.multi_codebook import MultiCodebook as MultiCodebook
from mmblocks.tokenizers.bottlenecks.multi_head import MultiHeadVectorQuantizer as MultiHeadVectorQuantizer
from mmblocks.tokenizers.bottlenecks.multi_scale import MultiScaleQuantizer as MultiScaleQuantizer
from mmblocks.tokenizers.bottlenecks.residual.finite_scalar import ResidualFiniteScalarQuantizer as ResidualFiniteScalarQuantizer
from mmblocks.tokenizers.bottlenecks.residual.lookup_free import ResidualLookupFreeQuantizer as ResidualLookupFreeQuantizer
from mmblocks.tokenizers.bottlenecks.residual.quantizer import ResidualQuantizer as ResidualQuantizer
from mmblocks.tokenizers.bottlenecks.residual.rq import JointRQBottleneck as JointRQBottleneck
from mmblocks.tokenizers.bottlenecks.residual.rq import RQBottleneck as RQBottleneck
from mmblocks.tokenizers.bottlenecks.scaled_latents import ScaledLatents as ScaledLatents
from mmblocks.tokenizers.bottlenecks.sim_vq import SimVQ as SimVQ
from mmblocks.tokenizers.bottlenecks.text_aligned import TextAlignedQuantizer as TextAlignedQuantizer
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer as VectorQuantizer
