"""The trunk denoises a span between the ids that open and close it, which are read anew with it in every pass.

Shapes: N tokens of all spans, S spans, D width of the trunk, C channels of a value.
"""

from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from mmblocks.block import Block
from mmblocks.heads.span_denoising import SpanDenoisingHead, Told
from mmblocks.layers.markers import Markers
from mmblocks.sequence.spans import Reading, Spans
from mmblocks.sequence.tokens import Modality


class FramedDenoisingHead(SpanDenoisingHead):
    """``SpanDenoisingHead`` whose spans have markers: text in the span, all of which sees all of it, noised or clean.

    The markers stand before the span. Where positions are those of ``by_order``, all of it has one position, and it is of no matter
    to attention on which side they stand.

    Args:
        dim, channels, path, sampler, patch: as for ``SpanDenoisingHead``, of the time "added" to the tokens.
        markers: of each span.

    Raises:
        TypeError, ValueError: as ``SpanDenoisingHead``.

    Source: BAGEL (arXiv 2505.14683; ByteDance-Seed/Bagel).

    Examples:
        >>> from mmblocks import TextEmbedding
        >>> from mmblocks.heads import FramedDenoisingHead
        >>> from mmblocks.layers import Markers, StraightFlow
        >>> markers = Markers(table=TextEmbedding(vocab_size=16, dim=32), ids=(3, 4))
        >>> head = FramedDenoisingHead(dim=32, channels=4, path=StraightFlow(), patch=2, markers=markers)
        >>> head.span.lead, head.span.count((4, 6))
        (2, 6)
    """

    def __init__(
        self,
        *,
        dim: int,
        channels: int,
        markers: Markers,
        path: Block | None = None,
        sampler: Block | None = None,
        patch: int = 1,
    ) -> None:
        super().__init__(dim=dim, channels=channels, path=path, sampler=sampler, patch=patch)
        self.markers = markers
        self.span = replace(self.span, lead=len(markers.ids), attends="all", lead_modality=int(Modality.TEXT))

    def reading(self, x: Float[Tensor, "N C"], told: Told, spans: Spans) -> Reading:
        """What the trunk reads of noised values, and the markers of each span."""
        markers = self.markers()
        leads = markers.repeat(len(spans.leads) // len(markers), 1)
        return super().reading(x, told, spans)._replace(leads=leads)
