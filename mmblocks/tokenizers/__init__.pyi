"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.tokenizers.conv.conv_autoencoder import ConvDecoder as ConvDecoder
from mmblocks.tokenizers.conv.conv_autoencoder import ConvEncoder as ConvEncoder
from mmblocks.tokenizers.conv_vq import ConvVQ as ConvVQ
from mmblocks.tokenizers.diffusers_autoencoder import DiffusersAutoencoder as DiffusersAutoencoder
from mmblocks.tokenizers.emu2_latents import Emu2Latents as Emu2Latents
from mmblocks.tokenizers.emu3.tokenizer import Emu3VQ as Emu3VQ
from mmblocks.tokenizers.ibq import IBQ as IBQ
from mmblocks.tokenizers.jpeg import JPEGTokenizer as JPEGTokenizer
from mmblocks.tokenizers.lavit.tokenizer import LaVITTokenizer as LaVITTokenizer
from mmblocks.tokenizers.llamagen_vq import LlamaGenVQ as LlamaGenVQ
from mmblocks.tokenizers.ming_tok.tokenizer import MingTok as MingTok
from mmblocks.tokenizers.open_magvit2.tokenizer import OpenMAGVIT2 as OpenMAGVIT2
from mmblocks.tokenizers.open_magvit2.video import OpenMAGVIT2Video as OpenMAGVIT2Video
from mmblocks.tokenizers.titok.first_stage import FirstStageTiTok as FirstStageTiTok
from mmblocks.tokenizers.titok.maskgit_vqgan import MaskGITVQGAN as MaskGITVQGAN
from mmblocks.tokenizers.titok.tokenizer import OneStageTiTok as OneStageTiTok
from mmblocks.tokenizers.titok.tokenizer import TATiTok as TATiTok
from mmblocks.tokenizers.titok.tokenizer import TiTok as TiTok
from mmblocks.tokenizers.towers.dualtoken import DualToken as DualToken
from mmblocks.tokenizers.towers.seed import SEEDTokenizer as SEEDTokenizer
from mmblocks.tokenizers.towers.tar import TATok as TATok
from mmblocks.tokenizers.towers.unitok import UniTok as UniTok
from mmblocks.tokenizers.var.tokenizer import VARVQ as VARVQ
from mmblocks.tokenizers.visual_tokenizer import VisualTokenizer as VisualTokenizer
from mmblocks.tokenizers.vqgan import VQGAN as VQGAN
from mmblocks.tokenizers.vqgan import ChameleonVQ as ChameleonVQ
