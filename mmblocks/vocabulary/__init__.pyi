"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.vocabulary.code_ids import CodeIds as CodeIds
from mmblocks.vocabulary.depth_code_format import DepthCodeFormat as DepthCodeFormat
from mmblocks.vocabulary.grid_format import EMU3 as EMU3
from mmblocks.vocabulary.grid_format import EMU35 as EMU35
from mmblocks.vocabulary.grid_format import GridFormat as GridFormat
from mmblocks.vocabulary.grid_format import chameleon_format as chameleon_format
from mmblocks.vocabulary.grid_format import raster_format as raster_format
from mmblocks.vocabulary.text_tokenizers import ByteTokenizer as ByteTokenizer
from mmblocks.vocabulary.text_tokenizers import TokenizerFile as TokenizerFile
