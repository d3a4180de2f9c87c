"""What type checkers see of the public names, which the package itself imports only when they are used."""

from mmblocks.batches import Batch as Batch
from mmblocks.batches import BatchBuilder as BatchBuilder
from mmblocks.block import Block as Block
from mmblocks.compose import MultimodalModel as MultimodalModel
from mmblocks.embedders.eve2 import EVE2PatchEmbedding as EVE2PatchEmbedding
from mmblocks.embedders.text import TextEmbedding as TextEmbedding
from mmblocks.generation.grammar import GridGrammar as GridGrammar
from mmblocks.generation.grammar import TextGrammar as TextGrammar
from mmblocks.grid_format import EMU3 as EMU3
from mmblocks.grid_format import EMU35 as EMU35
from mmblocks.grid_format import GridFormat as GridFormat
from mmblocks.heads.language import LMHead as LMHead
from mmblocks.layers.categorical import GREEDY as GREEDY
from mmblocks.layers.categorical import Sampling as Sampling
from mmblocks.models.emu3 import Emu3 as Emu3
from mmblocks.segments import codes as codes
from mmblocks.segments import image as image
from mmblocks.segments import text as text
from mmblocks.segments import vectors as vectors
from mmblocks.text_tokenizers import ByteTokenizer as ByteTokenizer
from mmblocks.text_tokenizers import TokenizerFile as TokenizerFile
from mmblocks.tokenizers.bottlenecks.index_backpropagation import IndexBackpropagation as IndexBackpropagation
from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer as VectorQuantizer
from mmblocks.tokenizers.conv_autoencoder import ConvDecoder as ConvDecoder
from mmblocks.tokenizers.conv_autoencoder import ConvEncoder as ConvEncoder
from mmblocks.tokenizers.conv_vq import ConvVQ as ConvVQ
from mmblocks.tokenizers.ibq import IBQ as IBQ
from mmblocks.tokenizers.llamagen_vq import LlamaGenVQ as LlamaGenVQ
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer as VisualTokenizer
from mmblocks.tokenizers.vqgan import VQGAN as VQGAN
from mmblocks.tokenizers.vqgan import ChameleonVQ as ChameleonVQ
from mmblocks.tokens import Latents as Latents
from mmblocks.tokens import Modality as Modality
from mmblocks.tokens import TokenTable as TokenTable
from mmblocks.tokens import VisionTokens as VisionTokens
from mmblocks.trunks.decoder import Decoder as Decoder
from mmblocks.trunks.kv_cache import KVCache as KVCache

__version__: str
__all__: list[str]
