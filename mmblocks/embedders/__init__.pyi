"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.embedders.caption import CaptionEmbedding as CaptionEmbedding
from mmblocks.embedders.class_label import ClassLabelEmbedding as ClassLabelEmbedding
from mmblocks.embedders.clip import ClipEmbedder as ClipEmbedder
from mmblocks.embedders.depth_codes import DepthCodeEmbedding as DepthCodeEmbedding
from mmblocks.embedders.encoder_embedder import EncoderEmbedder as EncoderEmbedder
from mmblocks.embedders.eve1 import EVE1PatchEmbedding as EVE1PatchEmbedding
from mmblocks.embedders.eve1_alignment import EVE1PatchAlignment as EVE1PatchAlignment
from mmblocks.embedders.eve2 import EVE2PatchEmbedding as EVE2PatchEmbedding
from mmblocks.embedders.fixed_places import FixedPlaces as FixedPlaces
from mmblocks.embedders.framed_images import FramedImages as FramedImages
from mmblocks.embedders.fuyu import FuyuPatchEmbedding as FuyuPatchEmbedding
from mmblocks.embedders.learned_places import LearnedPlaces as LearnedPlaces
from mmblocks.embedders.linear_patches import LinearPatchEmbedding as LinearPatchEmbedding
from mmblocks.embedders.neo import NEOPatchEmbedding as NEOPatchEmbedding
from mmblocks.embedders.projected import ProjectedEmbedding as ProjectedEmbedding
from mmblocks.embedders.rendered_text import RenderedTextEmbedding as RenderedTextEmbedding
from mmblocks.embedders.structured import StructuredEmbedder as StructuredEmbedder
from mmblocks.embedders.text import TextEmbedding as TextEmbedding
