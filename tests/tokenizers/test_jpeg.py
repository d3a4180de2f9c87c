from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from mmblocks import Block
from mmblocks.layers.images.pixels import pixels_of
from mmblocks.sequence.tokens import Latents
from mmblocks.tokenizers.jpeg import JPEGTokenizer

OPTIONS = [
    {},
    {"quality": 90, "subsampling": "4:4:4", "restart_blocks": 3},
    {"subsampling": "4:2:2", "restart_blocks": 0},
]


def photo(height, width, seed=0):
    """Smooth, with a little noise, so that blocks differ."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)[0]
    return (smooth + 0.1 * torch.rand(3, height, width, generator=generator)).clamp(0, 1)


def pillow(pixels, quality=25, subsampling="4:2:0", restart_blocks=1):
    """What Pillow reads from the whole file that it writes itself."""
    image = Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().numpy())
    file = BytesIO()
    image.save(file, format="JPEG", quality=quality, subsampling=subsampling, restart_marker_blocks=restart_blocks)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255, file.getvalue()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (17, 5), (32, 48), (33, 150)])
def test_decodes_to_what_pillow_reads_from_its_own_file(size, options) -> None:
    tokenizer = JPEGTokenizer(**options)
    wanted, file = pillow(photo(*size), **options)
    latents = tokenizer.encode(photo(*size)[None])
    assert torch.equal(tokenizer.decode(latents)[0], wanted)
    assert torch.equal(tokenizer.decode(latents.ids), wanted[None])
    assert latents.ids.shape == (1, int(latents.lengths)) and len(file) - latents.ids.numel() > 500  # less the tables
    assert latents.z.shape == (*latents.ids.shape, 0) and tokenizer.codebook_sizes == (256,)


def test_the_paper_s_stream() -> None:
    """At 256 x 256 pixels, 256 blocks, each but the last closed by a restart marker: the sequence of JPEG-LM's training data."""
    file = bytes(JPEGTokenizer().encode(photo(256, 256)[None]).ids[0].tolist())
    assert file.startswith(b"\xff\xd8\xff\xe0") and file.endswith(b"\xff\xd9")
    markers = [after for byte, after in pairwise(file[59:]) if byte == 255 and after]
    assert markers == [0xD0 + number % 8 for number in range(255)] + [0xD9]
    assert b"\xff\xdb" not in file and b"\xff\xc4" not in file


def test_images_of_several_sizes_are_padded() -> None:
    tokenizer = JPEGTokenizer()
    images = [photo(8, 40, seed=1), photo(40, 33, seed=2)]
    latents = tokenizer.encode(images)
    alone = [tokenizer.encode(image[None]).ids[0] for image in images]
    assert latents.lengths.tolist() == [len(ids) for ids in alone]
    for row, length, ids in zip(latents.ids, latents.lengths, alone, strict=True):
        assert torch.equal(row[:length], ids) and not row[length:].any()
    for given in (latents, latents.ids):
        for decoded, image in zip(tokenizer.decode_each(given), images, strict=True):
            assert torch.equal(decoded, pillow(image)[0])
    with pytest.raises(ValueError, match="several sizes, 8x40, 40x33; accepted: one"):
        tokenizer.decode(latents)


def test_a_file_that_is_broken_off() -> None:
    tokenizer = JPEGTokenizer()
    latents = tokenizer.encode(photo(48, 64)[None])
    whole = tokenizer.decode(latents)
    half = Latents(z=latents.z, ids=latents.ids, lengths=latents.lengths // 2)
    with pytest.raises(ValueError, match=r"image 0 of 48x64 is broken off: its \d+ bytes hold no end \(FF D9\)"):
        tokenizer.decode(half)
    decoded = tokenizer.decode(half, partial=True)
    assert torch.equal(decoded[..., :14, :], whole[..., :14, :])  # colours are smoothed over two lines
    torch.testing.assert_close(decoded[..., -14:, :], torch.full((1, 3, 14, 64), 128 / 255))
    assert torch.equal(tokenizer.decode(latents, partial=True), whole)


def test_damage_ends_at_the_next_restart_marker() -> None:
    tokenizer = JPEGTokenizer()
    latents = tokenizer.encode(photo(16, 64)[None])
    file = bytes(latents.ids[0].tolist())
    place = file.index(b"\xff\xd0") - 1  # the last byte of the first block
    damaged = torch.tensor([[*file[: place - 3], 0xFF, 0xC4, 7, 7, *file[place + 1 :]]])
    with pytest.raises(ValueError, match="damaged: it has 4 markers in its data; accepted: 3, which are FF D0"):
        tokenizer.decode(damaged)
    decoded = tokenizer.decode(damaged, partial=True)
    assert torch.equal(decoded[..., 17:], tokenizer.decode(latents)[..., 17:])
    assert not torch.equal(decoded, tokenizer.decode(latents))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({0: 1}, "image 0 begins with 01 d8; accepted: ff d8"),
        ({8: 1}, "another header than a 16x16 image; accepted: ff d8 "),
        ({26: 17}, "of 17x16 is damaged: it has 0 markers in its data; accepted: 1, which"),
        ({25: 255, 27: 255}, "claims a size of 65296x65296; accepted: 1 to"),
        ({28: 0}, "claims a size of 16x0"),
        ({61: 300}, r"accepted: \[0, 255\]"),
    ],
)
def test_damaged_headers_and_ids_are_refused(changes, message) -> None:
    tokenizer = JPEGTokenizer()
    ids = tokenizer.encode(photo(16, 16)[None]).ids
    for place, value in changes.items():
        ids[0, place] = value
    with pytest.raises(ValueError, match=message):
        tokenizer.decode(ids)


def test_noise_is_refused_and_nothing_else() -> None:
    tokenizer = JPEGTokenizer()
    generator = torch.Generator().manual_seed(0)
    header = tokenizer.encode(photo(20, 20)[None]).ids[:, :59]
    for _ in range(50):
        noise = torch.randint(256, (1, 300), generator=generator)
        for partial in (False, True):
            with pytest.raises(ValueError, match="image 0"):
                tokenizer.decode(noise, partial=partial)
        assert tokenizer.decode(torch.cat([header, noise], dim=1), partial=True).shape == (1, 3, 20, 20)


def test_saved_and_loaded(tmp_path) -> None:
    tokenizer = JPEGTokenizer(**OPTIONS[1])
    tokenizer.save_pretrained(tmp_path)
    again = Block.from_pretrained(tmp_path)
    assert again.config == tokenizer.config
    assert torch.equal(again.encode(photo(9, 9)[None]).ids, tokenizer.encode(photo(9, 9)[None]).ids)


def test_an_image_survives_preprocessing() -> None:
    image = Image.fromarray((photo(9, 7).permute(1, 2, 0) * 255).round().byte().numpy())
    tokenizer = JPEGTokenizer()
    assert torch.equal(tokenizer.preprocess(image), pixels_of(image))
    assert torch.equal(tokenizer.decode(tokenizer.encode([tokenizer.preprocess(image)]))[0], pillow(photo(9, 7))[0])


@pytest.mark.unchecked
def test_what_does_not_fit_is_refused() -> None:
    tokenizer = JPEGTokenizer()
    with pytest.raises(TypeError, match="uint8"):
        tokenizer.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\[0, nan\]|nan"):
        tokenizer.encode(torch.full((1, 3, 8, 8), float("nan")))
    with pytest.raises(ValueError, match="no image"):
        tokenizer.encode([])
    with pytest.raises(ValueError, match="sides of 1 to 65500"):
        tokenizer.encode(torch.zeros(1, 3, 0, 8))
    with pytest.raises(ValueError, match=r"ids have shape \(4,\)"):
        tokenizer.decode(torch.zeros(4, dtype=torch.long))
    with pytest.raises(TypeError, match="float32"):
        tokenizer.decode(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="no vector"):
        tokenizer.lookup(torch.zeros(1, 4, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": 0}, "quality is 0; accepted: 1 to 100"),
        ({"subsampling": "4:1:1"}, "subsampling is '4:1:1'; accepted: 4:4:4, "),
        ({"restart_blocks": -1}, "restart_blocks is -1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        JPEGTokenizer(**options)
