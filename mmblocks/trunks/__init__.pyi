"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.trunks.caches.kv_cache import KVCache as KVCache
from mmblocks.trunks.caches.kv_cache import cache_bytes as cache_bytes
from mmblocks.trunks.caches.static_cache import StaticCache as StaticCache
from mmblocks.trunks.caches.windowed_cache import WindowedCache as WindowedCache
from mmblocks.trunks.chameleon import ChameleonTrunk as ChameleonTrunk
from mmblocks.trunks.decoder import Decoder as Decoder
from mmblocks.trunks.gated_cross_attention import GatedCrossAttentionDecoder as GatedCrossAttentionDecoder
from mmblocks.trunks.hooks import HookedTrunk as HookedTrunk
from mmblocks.trunks.hooks import TrunkHooks as TrunkHooks
from mmblocks.trunks.llamagen import LlamaGenTrunk as LlamaGenTrunk
from mmblocks.trunks.neo.trunk import NEOTrunk as NEOTrunk
from mmblocks.trunks.pruned.decoder import PrunedDecoder as PrunedDecoder
from mmblocks.trunks.routed.mixture_of_experts import MoEDecoder as MoEDecoder
from mmblocks.trunks.routed.modality_lora import ModalityLoRADecoder as ModalityLoRADecoder
from mmblocks.trunks.routed.modality_lora import SlideLoRADecoder as SlideLoRADecoder
from mmblocks.trunks.routed.routed_decoder import RoutedDecoder as RoutedDecoder
from mmblocks.trunks.transformers.trunk import TransformersTrunk as TransformersTrunk
