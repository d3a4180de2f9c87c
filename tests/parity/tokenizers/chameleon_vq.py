"""Chameleon's and Anole's tokenizer."""

from mmblocks.tokenizers import ChameleonVQ
from tests.parity.cases import Case
from tests.parity.tokenizers.vqgan_taming import check_vqgan

MANIFESTS = {
    "chameleon_vqgan": [(ChameleonVQ, "chameleon")],
    "chameleon_vqgan_hf": [(ChameleonVQ, "chameleon-transformers")],
}


def run(case: Case) -> None:
    check_vqgan(case, case.load(ChameleonVQ), "chameleon")
