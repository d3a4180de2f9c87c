"""What a trunk takes beside its tokens is part of the batch."""

import torch

from mmblocks import Decoder, Generation, GridFormat, GridGrammar, LMHead, MultimodalModel, TextEmbedding, codes, text
from mmblocks.sequence import Modality
from mmblocks.trunks import GatedCrossAttentionDecoder
from mmblocks.vocabulary import CodeIds


def test_images_for_cross_attention_are_learned_from_within_a_model() -> None:
    torch.manual_seed(0)
    trunk = GatedCrossAttentionDecoder(trunk=Decoder(dim=16, num_layers=2, num_heads=2, mlp_dim=32), context_dim=8, every=1)
    for name, parameter in trunk.named_parameters():
        if "gate" in name:
            torch.nn.init.ones_(parameter)
    model = MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=16, dim=16)}, trunk=trunk, outputs={"text": LMHead(dim=16, vocab_size=16)}
    )
    batch = model.batch_builder()([[codes(torch.tensor([5]), modality=Modality.VISION), text([1, 2], target="text")]])
    images = torch.randn(1, 1, 3, 8, requires_grad=True)
    with_images = batch._replace(beside={"images": images}).to("cpu")
    loss = model(with_images).losses["text"]
    loss.backward()
    assert images.grad is not None
    assert bool(images.grad.abs().sum() > 0)
    expected = model.trunk(model.embed(batch), batch.table, images=images)
    torch.testing.assert_close(model(with_images).hidden, expected)


def test_codes_of_another_modality_are_written_as_they_are_learned() -> None:
    """Sound: the table of what is written is that of what is learned, so that routing and masks are the same."""
    form = GridFormat(begin=1, closing=(2,), codes=CodeIds(sizes=(4,), first=8), fixed_size=(1, 3))
    learned: list[torch.Tensor] = []

    class Recording(Decoder):
        def forward(self, embeds, table, *args, **options):  # type: ignore[no-untyped-def]
            learned.append(table.modality.clone())
            return super().forward(embeds, table, *args, **options)

    model = MultimodalModel(
        inputs={"text": TextEmbedding(vocab_size=12, dim=16)},
        trunk=Recording(dim=16, num_layers=1, num_heads=2, mlp_dim=32),
        outputs={"text": LMHead(dim=16, vocab_size=12)},
    )
    grammar = GridGrammar(form, modality=Modality.AUDIO, num_images=1, stop=(0,))
    (_, made), *_ = model.generate([[text([1])]], grammar, Generation(max_tokens=6, generator=0))
    assert made.modality == Modality.AUDIO
    written = torch.cat(learned, dim=1)[0, :5].tolist()
    model(model.batch_builder()([[codes(made.grid, form, modality=Modality.AUDIO, target="text"), text([0])]]))
    assert written == learned[-1][0, :5].tolist() == [0, 2, 2, 2, 0]
