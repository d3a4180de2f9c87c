"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.training.adversarial import PatchDiscriminator as PatchDiscriminator
from mmblocks.training.contrastive import clip_loss as clip_loss
from mmblocks.training.siglip import siglip_loss as siglip_loss
from mmblocks.training.stages import EVE1_STAGES as EVE1_STAGES
from mmblocks.training.stages import EVE2_STAGES as EVE2_STAGES
from mmblocks.training.stages import TrainingStage as TrainingStage
from mmblocks.training.tokenizer import TokenizerTrainer as TokenizerTrainer
from mmblocks.training.tokenizer_recipe import TokenizerRecipe as TokenizerRecipe
