"""What type checkers see of the public names; written by ``make stubs``."""

from mmblocks.prompts.chat_format import ChatFormat as ChatFormat
from mmblocks.prompts.fronts import CodesFront as CodesFront
from mmblocks.prompts.fronts import ReadingFront as ReadingFront
from mmblocks.prompts.messages import Turn as Turn
from mmblocks.prompts.messages import turns_of as turns_of
from mmblocks.prompts.request import Components as Components
from mmblocks.prompts.request import NoText as NoText
from mmblocks.prompts.request import Request as Request
