"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.models.acdit.model import ACDiT as ACDiT
from mmblocks.models.chameleon.front import ChameleonFront as ChameleonFront
from mmblocks.models.chameleon.model import Chameleon as Chameleon
from mmblocks.models.emu.images import EmuGen as EmuGen
from mmblocks.models.emu.model import Emu as Emu
from mmblocks.models.emu2.images import Emu2Gen as Emu2Gen
from mmblocks.models.emu2.model import Emu2 as Emu2
from mmblocks.models.emu3.front import Emu3GenFront as Emu3GenFront
from mmblocks.models.emu3.front import Emu35Front as Emu35Front
from mmblocks.models.emu3.model import Emu3 as Emu3
from mmblocks.models.eve import EVE1 as EVE1
from mmblocks.models.eve import EVE2 as EVE2
from mmblocks.models.janus.front import JanusFront as JanusFront
from mmblocks.models.janus.model import Janus as Janus
from mmblocks.models.joint_denoiser import JointDenoiser as JointDenoiser
from mmblocks.models.llamagen import LlamaGen as LlamaGen
from mmblocks.models.llamagen import LlamaGenT2I as LlamaGenT2I
from mmblocks.models.mar.model import MAR as MAR
from mmblocks.models.neo import NEO as NEO
from mmblocks.models.omnigen.model import OmniGen as OmniGen
from mmblocks.models.omnigen.trunk import Phi3Decoder as Phi3Decoder
from mmblocks.models.omnigen.trunk import Phi3Rotary as Phi3Rotary
from mmblocks.models.omnigen.trunk import VelocityHead as VelocityHead
from mmblocks.models.orthus import Orthus as Orthus
from mmblocks.models.var.model import VARImageModel as VARImageModel
from mmblocks.models.var.transformer import VAR as VAR
