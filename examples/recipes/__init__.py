"""Published ways of writing an image, each composed of the library's parts in a function of its own."""

from recipes.bagel_like import bagel_like
from recipes.metaqueries_like import metaqueries_like
from recipes.nexus_like import nexus_like
from recipes.one_by_one import emu3_like, orthus_like
from recipes.show_o_like import show_o_like
from recipes.transfusion_like import transfusion_like
from recipes.vargpt_like import vargpt_like

RECIPES = {
    "emu3": emu3_like,
    "orthus": orthus_like,
    "show_o": show_o_like,
    "transfusion": transfusion_like,
    "bagel": bagel_like,
    "nexus": nexus_like,
    "metaqueries": metaqueries_like,
    "vargpt": vargpt_like,
}
"""By short name. The first two write one token after the other and are what the others compare with."""
