"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.checkpoints.golden import compare_golden as compare_golden
from mmblocks.checkpoints.golden import write_golden as write_golden
from mmblocks.checkpoints.hub.catalogue import Pretrained as Pretrained
from mmblocks.checkpoints.hub.catalogue import list_pretrained as list_pretrained
from mmblocks.checkpoints.layouts.layout import Derived as Derived
from mmblocks.checkpoints.layouts.layout import Layout as Layout
from mmblocks.checkpoints.layouts.layout import Rule as Rule
from mmblocks.checkpoints.layouts.layout import Split as Split
from mmblocks.checkpoints.origin import Origin as Origin
from mmblocks.checkpoints.surgery.adapters import load_adapters as load_adapters
from mmblocks.checkpoints.surgery.adapters import save_adapters as save_adapters
from mmblocks.checkpoints.surgery.low_rank import attach_lora as attach_lora
from mmblocks.checkpoints.surgery.low_rank import merge_lora as merge_lora
