"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks import checkpoints as checkpoints
from mmblocks import connectors as connectors
from mmblocks import embedders as embedders
from mmblocks import encoders as encoders
from mmblocks import generation as generation
from mmblocks import heads as heads
from mmblocks import layers as layers
from mmblocks import models as models
from mmblocks import pipelines as pipelines
from mmblocks import pixels as pixels
from mmblocks import prompts as prompts
from mmblocks import roles as roles
from mmblocks import sequence as sequence
from mmblocks import tokenizers as tokenizers
from mmblocks import training as training
from mmblocks import trunks as trunks
from mmblocks import vocabulary as vocabulary
from mmblocks.block import Block as Block
from mmblocks.checkpoints.hub.catalogue import list_pretrained as list_pretrained
from mmblocks.compose import MultimodalModel as MultimodalModel
from mmblocks.embedders.text import TextEmbedding as TextEmbedding
from mmblocks.generation.grammar import TextGrammar as TextGrammar
from mmblocks.generation.grid_grammar import GridGrammar as GridGrammar
from mmblocks.generation.options import Generation as Generation
from mmblocks.heads.language import LMHead as LMHead
from mmblocks.layers.categorical import GREEDY as GREEDY
from mmblocks.layers.categorical import Sampling as Sampling
from mmblocks.pipelines.known import list_fronts as list_fronts
from mmblocks.pipelines.pipeline import Pipeline as Pipeline
from mmblocks.sequence.batches import Batch as Batch
from mmblocks.sequence.batches import BatchBuilder as BatchBuilder
from mmblocks.sequence.segments import codes as codes
from mmblocks.sequence.segments import image as image
from mmblocks.sequence.segments import label as label
from mmblocks.sequence.segments import text as text
from mmblocks.sequence.segments import vectors as vectors
from mmblocks.sequence.tokens import Latents as Latents
from mmblocks.sequence.tokens import TokenTable as TokenTable
from mmblocks.sequence.tokens import VisionTokens as VisionTokens
from mmblocks.support.pickling import weightless as weightless
from mmblocks.trunks.decoder import Decoder as Decoder
from mmblocks.vocabulary.grid_format import GridFormat as GridFormat
from mmblocks.vocabulary.text_tokenizers import ByteTokenizer as ByteTokenizer
from mmblocks.vocabulary.text_tokenizers import TokenizerFile as TokenizerFile

__version__: str
