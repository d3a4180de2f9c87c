"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.sequence.batches import Batch as Batch
from mmblocks.sequence.batches import BatchBuilder as BatchBuilder
from mmblocks.sequence.documents import document_begins as document_begins
from mmblocks.sequence.masks import Causal as Causal
from mmblocks.sequence.masks import Dense as Dense
from mmblocks.sequence.masks import Intervals as Intervals
from mmblocks.sequence.masks import MaskRule as MaskRule
from mmblocks.sequence.masks import visible as visible
from mmblocks.sequence.positions import PositionScheme as PositionScheme
from mmblocks.sequence.positions import mrope as mrope
from mmblocks.sequence.positions import sequential as sequential
from mmblocks.sequence.segments import codes as codes
from mmblocks.sequence.segments import image as image
from mmblocks.sequence.segments import label as label
from mmblocks.sequence.segments import text as text
from mmblocks.sequence.segments import vectors as vectors
from mmblocks.sequence.spans import Conditions as Conditions
from mmblocks.sequence.spans import Pass as Pass
from mmblocks.sequence.spans import Reading as Reading
from mmblocks.sequence.spans import SpanLayout as SpanLayout
from mmblocks.sequence.spans import Spans as Spans
from mmblocks.sequence.tokens import ImageLayout as ImageLayout
from mmblocks.sequence.tokens import Latents as Latents
from mmblocks.sequence.tokens import Modality as Modality
from mmblocks.sequence.tokens import TokenTable as TokenTable
from mmblocks.sequence.tokens import VisionTokens as VisionTokens
