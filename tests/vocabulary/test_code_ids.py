import pytest
import torch

from mmblocks.tokenizers.bottlenecks.vector_quantizer import VectorQuantizer
from mmblocks.vocabulary.code_ids import CodeIds, chameleon_code_ids
from mmblocks.vocabulary.grid_format import EMU3

EMU3_CODES = CodeIds(sizes=(32768,), first=151854)
LAVIT = CodeIds(sizes=(16384,), first=32002)
UNITOK = CodeIds(sizes=(4096,) * 8, first=100)
MIXED = CodeIds(sizes=(3, 5, 2), first=10)
SHARED = CodeIds(sizes=(3, 5, 2), first=10, shared=True)
TABLE = CodeIds(sizes=(4,), table=(7, 2, 9, 4))
TABLES = CodeIds(sizes=(2, 3), table=(7, 2, 9, 4, 0))


def random_codes(codes, *shape):
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(size, shape, generator=generator) for size in codes.sizes]
    return columns[0] if len(columns) == 1 else torch.stack(columns, dim=-1)


@pytest.mark.parametrize("codes", [EMU3_CODES, LAVIT, UNITOK, MIXED, SHARED, TABLE, TABLES])
@pytest.mark.parametrize("shape", [(), (2, 3), (2, 3, 5), (0, 4)])
def test_there_and_back(codes, shape) -> None:
    numbers = random_codes(codes, *shape)
    ids = codes.to_vocabulary(numbers)
    assert ids.shape == numbers.shape and torch.equal(codes.from_vocabulary(ids), numbers)
    assert codes.is_code(ids).all()
    assert not codes.is_code(torch.tensor([codes.stop, 10**6 + codes.stop, -1])).any()


def test_where_codes_stand() -> None:
    assert EMU3_CODES.to_vocabulary(torch.tensor([0, 32767])).tolist() == [151854, 184621]
    assert LAVIT.to_vocabulary(torch.tensor([[1]], dtype=torch.int16)).tolist() == [[32003]]
    assert UNITOK.to_vocabulary(torch.arange(8)).tolist() == [100 + 4097 * number for number in range(8)]
    assert MIXED.to_vocabulary(torch.tensor([2, 4, 1])).tolist() == [12, 17, 19] and MIXED.stop == 20
    assert SHARED.to_vocabulary(torch.tensor([2, 4, 1])).tolist() == [12, 14, 11] and SHARED.stop == 15
    assert TABLE.to_vocabulary(torch.tensor([3, 0])).tolist() == [4, 7] and TABLE.stop == 10
    assert TABLES.to_vocabulary(torch.tensor([1, 2])).tolist() == [2, 0]
    assert (MIXED.ranges, SHARED.ranges) == (((10, 20),), ((10, 15),))
    assert (TABLE.ranges, TABLES.ranges) == (((2, 3), (4, 5), (7, 8), (9, 10)), ((0, 1), (2, 3), (4, 5), (7, 8), (9, 10)))
    assert CodeIds(sizes=(4,), table=(6, 5, 9, 7)).ranges == ((5, 8), (9, 10)) and TABLE.start == 2
    assert MIXED.ids(1).tolist() == [13, 14, 15, 16, 17] and TABLES.ids(1).tolist() == [9, 4, 0]


def test_the_ids_of_a_grid_format() -> None:
    codes = EMU3.codes
    grid = torch.randint(codes.num_ids, (2, 3))
    text = EMU3.write(grid)
    assert torch.equal(codes.is_code(text.ids), text.place[:, 0] >= 0)
    assert torch.equal(codes.from_vocabulary(text.ids[codes.is_code(text.ids)]), grid.flatten())


@pytest.mark.parametrize("codes", [MIXED, SHARED, TABLES])
def test_what_may_be_drawn(codes) -> None:
    for number, size in enumerate(codes.sizes):
        allowed = codes.allowed(25, number)
        assert allowed.shape == (25,) and int(allowed.sum()) == size and allowed[codes.ids(number)].all()
    assert torch.equal(codes.allowed(25), codes.is_code(torch.arange(25)))


@pytest.mark.parametrize("codes", [MIXED, SHARED, TABLE, TABLES])
def test_soft_choices_and_their_gradients(codes) -> None:
    """Logits of the vocabulary to a mixture of code vectors, and a soft choice of codes to a mixture of embeddings."""
    for number, size in enumerate(codes.sizes):
        logits = torch.randn(2, 3, 25, requires_grad=True)
        taken = codes.take(logits, number)
        assert torch.equal(taken, logits[..., codes.ids(number)])
        VectorQuantizer(num_codes=size, dim=4).mix(taken.softmax(-1)).square().sum().backward()
        assert torch.equal(logits.grad.abs().sum((0, 1)) > 0, codes.allowed(25, number))

        weights = torch.rand(2, 3, size, requires_grad=True)
        placed = codes.place(weights, 25, number)
        assert torch.equal(codes.take(placed, number), weights) and torch.isclose(placed.sum(), weights.sum())
        (placed @ torch.randn(25, 4)).square().sum().backward()
        assert (weights.grad != 0).all()


def test_chameleon_as_in_transformers() -> None:
    mapping = pytest.importorskip("transformers.models.chameleon.modeling_chameleon").ChameleonImageVocabularyMapping
    names = ["IMGIMG" + str(code).translate(str.maketrans("0123456789", "ABCDEFGHIJ")) + "Z" for code in range(120)]
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0)).tolist()
    vocabulary = {"<s>": 0, "IMG": 1} | {names[code]: 4 + place for place, code in enumerate(order)}
    codes = chameleon_code_ids(vocabulary)
    numbers = torch.randint(120, (2, 5))
    assert torch.equal(codes.to_vocabulary(numbers), mapping(vocabulary).convert_img2bpe(numbers).long())
    assert codes.ids()[:2].tolist() == [vocabulary["IMGIMGAZ"], vocabulary["IMGIMGBZ"]]
    for broken in ({}, {name: id for name, id in vocabulary.items() if name != "IMGIMGCZ"}):  # noqa: A001
        with pytest.raises(ValueError, match=r"tokens IMGIMG\.\.\.Z"):
            chameleon_code_ids(broken)


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda: EMU3_CODES.to_vocabulary(torch.tensor([5, 32768])), ValueError, r"codes hold 32768; accepted: \[0, 32767\]"),
        (lambda: EMU3_CODES.from_vocabulary(torch.tensor([5])), ValueError, r"ids hold 5; accepted: \[151854, 184621\]"),
        (lambda: EMU3_CODES.from_vocabulary(torch.tensor([184622])), ValueError, "ids hold 184622"),
        (lambda: MIXED.to_vocabulary(torch.tensor([3, 0, 0])), ValueError, r"codes hold 3; accepted: \[0, \(2, 4, 1\)\]"),
        (lambda: MIXED.from_vocabulary(torch.tensor([13, 13, 18])), ValueError, r"accepted: \[\(10, 13, 18\), \(12, 17, 19\)\]"),
        (lambda: SHARED.from_vocabulary(torch.tensor([10, 10, 12])), ValueError, r"12; accepted: \[10, \(12, 14, 11\)\]"),
        (lambda: TABLE.from_vocabulary(torch.tensor([3])), ValueError, "ids hold 3; accepted: the 4 ids of the table, from 2 to 9"),
        (lambda: TABLE.from_vocabulary(torch.tensor([-1, 100])), ValueError, "ids hold -1, 100"),
        (lambda: MIXED.to_vocabulary(torch.zeros(2, 8, dtype=torch.long)), ValueError, r"codes have shape \(2, 8\); .*\(\*, 3\)"),
        (lambda: MIXED.ids(3), ValueError, "number is 3; accepted: 0 to 2"),
        (lambda: MIXED.allowed(19), ValueError, "the vocabulary holds 19 ids; accepted: at least 20"),
        (lambda: MIXED.take(torch.zeros(2, 19)), ValueError, "at least 20"),
        (lambda: MIXED.place(torch.zeros(2, 4), 25, 1), ValueError, r"weights has shape \(2, 4\); accepted: \(\*, 5\)"),
        (lambda: CodeIds(sizes=(), first=0), ValueError, "at least one codebook"),
        (lambda: CodeIds(sizes=(4,)), ValueError, "first is None and table not given; accepted: one of the two"),
        (lambda: CodeIds(sizes=(4,), first=-1), ValueError, "first is -1"),
        (lambda: CodeIds(sizes=(4,), table=(1, 2, 2, 3)), ValueError, "4 ids, 3 of them different, from 1; accepted: 4 different"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(use, error, message) -> None:
    with pytest.raises(error, match=message):
        use()


@pytest.mark.unchecked
def test_numbers_that_are_no_integers_are_refused() -> None:
    for use in (EMU3_CODES.to_vocabulary, EMU3_CODES.from_vocabulary):
        with pytest.raises(TypeError, match="float32; accepted: integers"):
            use(torch.zeros(2))
        with pytest.raises(TypeError, match="bool"):
            use(torch.zeros(2, dtype=torch.bool))


@pytest.mark.unchecked
@pytest.mark.parametrize("codes", [MIXED, TABLES])
def test_one_graph(codes) -> None:
    def there_and_back(numbers):
        return codes.from_vocabulary(codes.to_vocabulary(numbers))

    numbers = random_codes(codes, 4)
    compiled = torch.compile(there_and_back, fullgraph=True, backend="eager")
    assert torch.equal(compiled(numbers), numbers)
