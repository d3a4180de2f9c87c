"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.generation.beam import beam_search as beam_search
from mmblocks.generation.choosing import ModalSampling as ModalSampling
from mmblocks.generation.continuous import VectorBlock as VectorBlock
from mmblocks.generation.continuous import VectorGrammar as VectorGrammar
from mmblocks.generation.grammar import TextGrammar as TextGrammar
from mmblocks.generation.grid_grammar import GridGrammar as GridGrammar
from mmblocks.generation.guidance import ClassifierFree as ClassifierFree
from mmblocks.generation.guidance import MutualInformation as MutualInformation
from mmblocks.generation.guidance import ThreeWay as ThreeWay
from mmblocks.generation.guidance import VisualContrastive as VisualContrastive
from mmblocks.generation.options import Generation as Generation
from mmblocks.generation.text_then_span import TextThenSpan as TextThenSpan
from mmblocks.generation.timed_guidance import NestedGuidance as NestedGuidance
from mmblocks.generation.union_grammar import UnionGrammar as UnionGrammar
