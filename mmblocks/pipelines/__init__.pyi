"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.pipelines.known import list_fronts as list_fronts
from mmblocks.pipelines.pipeline import Pipeline as Pipeline
from mmblocks.pipelines.planning import MemoryPlan as MemoryPlan
from mmblocks.pipelines.planning import PartMemory as PartMemory
from mmblocks.pipelines.planning import plan_memory as plan_memory
from mmblocks.pipelines.replies import Event as Event
from mmblocks.pipelines.replies import Reply as Reply
from mmblocks.pipelines.wishes import Chat as Chat
from mmblocks.pipelines.wishes import Edit as Edit
from mmblocks.pipelines.wishes import GenerateImage as GenerateImage
from mmblocks.pipelines.wishes import GenerateVideo as GenerateVideo
from mmblocks.pipelines.wishes import Settings as Settings
from mmblocks.pipelines.zero_shot import Match as Match
from mmblocks.pipelines.zero_shot import ZeroShot as ZeroShot
