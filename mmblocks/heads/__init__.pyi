"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.heads.denoising import DenoisingHead as DenoisingHead
from mmblocks.heads.depth_codes import DepthCodeHead as DepthCodeHead
from mmblocks.heads.embedding import EmbeddingHead as EmbeddingHead
from mmblocks.heads.embedding import MatchingHead as MatchingHead
from mmblocks.heads.generator import GeneratorHead as GeneratorHead
from mmblocks.heads.language import LMHead as LMHead
from mmblocks.heads.mar import MARDiffusionHead as MARDiffusionHead
from mmblocks.heads.masked import MaskedTokenHead as MaskedTokenHead
from mmblocks.heads.masked_spans import MaskedCodesHead as MaskedCodesHead
from mmblocks.heads.masked_vectors import MaskedVectorsHead as MaskedVectorsHead
from mmblocks.heads.metric_flow import MetricFlowHead as MetricFlowHead
from mmblocks.heads.next_scale import NextScaleHead as NextScaleHead
from mmblocks.heads.nova import NOVAFlowHead as NOVAFlowHead
from mmblocks.heads.orthus import OrthusDiffusionHead as OrthusDiffusionHead
from mmblocks.heads.output_mapper import OutputMapper as OutputMapper
from mmblocks.heads.placeholders import PlaceholderHead as PlaceholderHead
from mmblocks.heads.regression import Placeholders as Placeholders
from mmblocks.heads.regression import RegressionHead as RegressionHead
from mmblocks.heads.scale_tokens import ScaleTokens as ScaleTokens
from mmblocks.heads.span_denoising import SpanDenoisingHead as SpanDenoisingHead
from mmblocks.heads.span_parts import ClassTokens as ClassTokens
from mmblocks.heads.span_parts import SpanPositions as SpanPositions
from mmblocks.heads.vocabularies import ModalityLMHead as ModalityLMHead
from mmblocks.heads.vocabularies import MultiTokenHead as MultiTokenHead
from mmblocks.heads.vocabularies import TiedLMHead as TiedLMHead
