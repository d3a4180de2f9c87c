"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.encoders.eva_clip import EVACLIP as EVACLIP
from mmblocks.encoders.eva_clip_text import EVACLIPText as EVACLIPText
from mmblocks.encoders.eva_clip_vision import EVACLIPVision as EVACLIPVision
from mmblocks.encoders.fused import ChannelFusion as ChannelFusion
from mmblocks.encoders.fused import DualResolution as DualResolution
from mmblocks.encoders.fused import EncoderGroup as EncoderGroup
from mmblocks.encoders.fused import TokenConcat as TokenConcat
from mmblocks.encoders.fused import TokenInterleave as TokenInterleave
from mmblocks.encoders.high_resolution import NativeResolution as NativeResolution
from mmblocks.encoders.high_resolution import TiledEncoder as TiledEncoder
from mmblocks.encoders.image_folder import embed_folder as embed_folder
from mmblocks.encoders.open_clip_encoder import OpenClipEncoder as OpenClipEncoder
from mmblocks.encoders.siglip import SigLIPVision as SigLIPVision
from mmblocks.encoders.siglip_any_size import SigLIPAnySize as SigLIPAnySize
from mmblocks.encoders.timm_encoder import TimmEncoder as TimmEncoder
