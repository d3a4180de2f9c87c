"""Tokens read one by one, in spans, taken back, with padding among them: always what one pass over the whole row computes."""

import random

import pytest
import torch

from mmblocks import Decoder, TokenTable
from mmblocks.generation.parallel import copy_positions
from mmblocks.sequence import masks
from mmblocks.sequence.positions import by_order, time_height_width
from mmblocks.sequence.tokens import NO_SPAN, PADDING, Modality
from mmblocks.trunks import Attention, GatedMLP, Layer, NEOTrunk, Rotary
from mmblocks.trunks import decoder as decoder_module

ROWS, DIM = 3, 32


def plain(**options) -> Decoder:
    return Decoder(dim=DIM, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=48, **options)


def of_layers(mixer: Attention, **options) -> Decoder:
    return Decoder(dim=DIM, num_layers=2, layers=Layer(mixer=mixer, feed_forward=GatedMLP(hidden_dim=48)), **options)


TRUNKS = {
    "plain": plain,
    "by order": lambda: plain(positions=by_order),
    "copies": lambda: plain(positions=copy_positions),
    "own scheme": lambda: plain(positions=lambda table: table.order),
    "mrope": lambda: of_layers(Attention(num_heads=4, rotary=Rotary(sections=(2, 1, 1)))),
    "window": lambda: of_layers(Attention(num_heads=4, window=5)),
    "scaled": lambda: of_layers(Attention(num_heads=4, rotary=Rotary(scaling={"type": "linear", "factor": 2.0}))),
    "neo": lambda: NEOTrunk(dim=DIM, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48),
    "three axes": lambda: of_layers(Attention(num_heads=4, rotary=Rotary(sections=(2, 1, 1))), positions=time_height_width),
}


class Story:
    """Random reads on a cache, each compared with one pass over all tokens that the cache holds."""

    def __init__(self, trunk, seed: int) -> None:
        self.trunk, self.random = trunk.eval(), random.Random(seed)
        torch.manual_seed(seed)
        self.embeds, self.table = torch.zeros(ROWS, 0, DIM), TokenTable.text(ROWS, 0)
        self.cache = trunk.new_cache(ROWS, 200)

    def columns(self, count: int, *, noisy: bool = False, image: bool = False) -> TokenTable:
        """The next tokens: a row may have padding among them, but not at the prompt's end."""
        new, before = TokenTable.text(ROWS, count), self.table
        new.order[:] += int(before.order.amax()) + 1 if before.shape[1] else 0
        if noisy or image:
            new.span[:] = int(before.span.amax()) + 1 if before.shape[1] else 0
            new.modality[:] = Modality.VISION
            new.grid[:, :, 2] = torch.arange(count)
        if noisy:
            new.noisy[:] = True
            new.order[:] = new.order[:, :1]
        for row in range(ROWS):
            for column in range(count):
                if before.shape[1] and self.random.random() < 0.2:
                    new.document[row, column] = new.modality[row, column] = PADDING
                    new.span[row, column] = NO_SPAN
        return new

    def read(self, table: TokenTable) -> None:
        embeds = torch.randn(ROWS, table.shape[1], DIM)
        self.embeds = torch.cat([self.embeds, embeds], dim=1)
        self.table = TokenTable(*(torch.cat(columns, dim=1) for columns in zip(self.table, table, strict=True)))
        found = self.trunk(embeds, table, self.cache, mask=self.cache.mask_for(table))
        wanted = self.trunk(self.embeds, self.table)[:, -table.shape[1] :]
        torch.testing.assert_close(found[~table.is_padding], wanted[~table.is_padding], atol=1e-5, rtol=1e-5)

    def forget(self, count: int) -> None:
        self.cache.forget(count)
        left = self.cache.length
        self.embeds, self.table = self.embeds[:, :left], self.table.slice(0, left)

    def turn(self) -> None:
        index = torch.tensor([self.random.randrange(ROWS) for _ in range(ROWS)])
        self.cache, self.embeds, self.table = self.cache.rows(index), self.embeds[index], self.table.rows(index)

    def check_table(self) -> None:
        for found, wanted in zip(self.cache.table, self.table, strict=True):
            assert torch.equal(found, wanted)

    def go_on(self) -> None:
        if self.random.random() < 0.3:
            self.check_table()
        match self.random.choice(["one", "one", "one", "image", "several", "noised", "forget", "rows"]):
            case "one":
                self.read(self.columns(1))
            case "image":
                for place in range(3):
                    column = self.columns(1, image=place == 0)
                    if place and self.table.shape[1]:  # the same image goes on
                        column.span[:] = torch.where(column.is_padding, NO_SPAN, self.table.span.amax())
                        column.grid[:, :, 2] = place
                    self.read(column)
            case "several":
                self.read(self.columns(3))
            case "noised":
                for _ in range(2):
                    self.read(self.columns(4, noisy=True))
                    self.forget(4)
            case "forget":
                self.forget(self.random.randrange(min(3, self.cache.length - 5)) if self.cache.length > 6 else 0)
            case _:
                self.turn()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", TRUNKS)
@torch.no_grad()
def test_any_reads_are_those_of_whole_rows(kind, seed) -> None:
    story = Story(TRUNKS[kind](), seed)
    prompt = story.columns(5)
    if seed:  # else nothing is padded at first
        prompt.document[0, :2] = prompt.modality[0, :2] = PADDING
    story.read(prompt)
    for _ in range(20):
        story.go_on()
    story.check_table()


@torch.no_grad()
def test_a_step_looks_at_one_column(monkeypatch) -> None:
    """What is known of the rows is found once, with the first token after the prompt."""
    trunk = plain()
    story = Story(trunk, 0)
    prompt = story.columns(5)
    prompt.document[0, :2] = prompt.modality[0, :2] = PADDING
    trunk(torch.randn(ROWS, 5, DIM), prompt, story.cache)
    looked = []
    monkeypatch.setattr(decoder_module, "find_mask", lambda mask, table, keys: looked.append(keys.shape) or masks.Causal())
    for place in range(5, 9):
        column = TokenTable.text(ROWS, place + 1).slice(place, place + 1)
        trunk(torch.randn(ROWS, 1, DIM), column, story.cache)
    assert looked == []
    trunk(torch.randn(ROWS, 1, DIM), column, story.cache, mask=masks.visible)  # a rule of one's own is followed
    assert looked == [(ROWS, 10)]


def test_what_is_kept_may_be_used_in_and_outside_of_inference_mode() -> None:
    trunk = plain().eval()
    cache = trunk.new_cache(1, 9)
    embeds, table = torch.randn(1, 9, DIM), TokenTable.text(1, 9)
    steps = []
    for place in range(9):
        with torch.inference_mode(place % 2 == 0), torch.no_grad():
            steps.append(trunk(embeds[:, place : place + 1], table.slice(place, place + 1), cache))
    torch.testing.assert_close(torch.cat(steps, dim=1), trunk(embeds, table))


@torch.no_grad()
def test_the_table_of_many_steps_is_that_of_their_columns() -> None:
    """Whenever it is looked at, and whatever becomes of a column that was handed over."""
    story = Story(plain(), 3)
    story.read(story.columns(5))
    for place in range(5, 150):
        column = story.columns(1)
        story.trunk(torch.randn(ROWS, 1, DIM), column, story.cache)
        story.table = TokenTable(*(torch.cat(columns, dim=1) for columns in zip(story.table, column, strict=True)))
        for values in column:
            values.fill_(1)
        if place == 120:
            story.check_table()
    story.check_table()


@torch.no_grad()
def test_what_attends_is_said_in_two_ways_that_agree() -> None:
    story, contexts = Story(plain(), 0), []
    prompt = story.columns(5)
    prompt.document[0, :2] = prompt.modality[0, :2] = PADDING
    story.read(prompt)
    for _ in range(12):
        column = story.columns(1)
        story.table = TokenTable(*(torch.cat(columns, dim=1) for columns in zip(story.table, column, strict=True)))
        contexts.append(story.trunk.context(torch.randn(ROWS, 1, DIM), column, story.cache).mask)
        assert torch.equal(contexts[-1].visible, masks.visible(column, story.table))
    numbers = [mask for mask in contexts if mask.added is not None]
    assert 0 < len(numbers) < 12
    assert all(torch.equal(mask.added[:, 0] == 0, mask.visible) for mask in numbers)
    assert all(torch.equal(mask.added[:, 0].isneginf(), ~mask.visible) for mask in numbers)
