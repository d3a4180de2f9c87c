"""What open_clip knows of its models by their names: configs of towers, and how published weights want their images."""

import difflib
from copy import deepcopy
from dataclasses import asdict
from typing import Any

Ways = tuple[tuple[float, ...], tuple[float, ...], str, str]
"""Mean, standard deviation, way of resizing and filter."""

_NOT_THE_TOWERS = ("image_size", "timm_model_pretrained", "patch_dropout", "timm_drop", "timm_drop_path", "output_tokens")
"""Of a vision_cfg: what may be another, is of training alone, or of what is returned beside the output."""


def model_config(name: str) -> dict[str, Any]:
    """The model_cfg of a name, a copy.

    Raises:
        ValueError: open_clip does not know it.
    """
    import open_clip  # type: ignore[import-untyped]

    known = open_clip.list_models()
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3])
        raise ValueError(f"name is {name!r}, which open_clip does not know; accepted: of open_clip.list_models(), such as {near}")
    found: dict[str, Any] = deepcopy(open_clip.get_model_config(name))
    return found


def matching_names(model: dict[str, Any]) -> list[str]:
    """Names of the models with the same image tower as a model_cfg, up to the size of images; the most alike come first.

    Raises:
        ValueError: an entry of the vision_cfg that open_clip does not know.
    """
    import open_clip

    wanted, size = _tower(model), model["vision_cfg"].get("image_size", 224)

    def unlike(name: str) -> tuple[bool, ...]:
        known = open_clip.get_model_config(name)
        # Text towers of other libraries take time to build, and are dropped.
        others = "hf_model_name" in known.get("text_cfg", {}) or "multimodal_cfg" in known
        return known != model, others, known["vision_cfg"].get("image_size", 224) != size

    fitting = [name for name in open_clip.list_models() if _tower(open_clip.get_model_config(name)) == wanted]
    return sorted(fitting, key=unlike)


def _tower(model: dict[str, Any]) -> tuple[Any, ...]:
    from open_clip.model import CLIPVisionCfg  # type: ignore[import-untyped]

    try:
        vision = asdict(CLIPVisionCfg(**model["vision_cfg"]))
    except TypeError as error:
        raise ValueError(f"vision_cfg is not understood: {error}") from error
    rest = {name: value for name, value in vision.items() if name not in _NOT_THE_TOWERS}
    return model["embed_dim"], bool(model.get("quick_gelu")), rest


def quick_gelu(name: str, weights: str | None) -> bool:
    """Whether a tower has QuickGELU where its name does not say it: some published weights were trained with it."""
    import open_clip

    model_config(name)
    return weights is not None and bool((open_clip.get_pretrained_cfg(name, weights) or {}).get("quick_gelu", False))


def known_ways(
    name: str,
    weights: str | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    resizing: str | None,
    interpolation: str | None,
) -> Ways:
    """How images are prepared: as given, and where nothing is given as published weights have it.

    Raises:
        ValueError: a name or weights that open_clip does not know; known weights that differ.
    """
    model_config(name)
    if mean is not None and std is not None and resizing is not None and interpolation is not None:
        _check_weights(name, weights)
        return mean, std, resizing, interpolation
    known = _published_ways(name, weights)
    return mean or known[0], std or known[1], resizing or known[2], interpolation or known[3]


def _published_ways(name: str, weights: str | None) -> Ways:
    import open_clip

    tags = _check_weights(name, weights)
    ways: dict[str, Ways] = {}
    for tag in (weights,) if weights is not None else tags:
        cfg = open_clip.get_pretrained_cfg(name, tag)
        ways[tag] = (tuple(cfg["mean"]), tuple(cfg["std"]), cfg.get("resize_mode", "shortest"), cfg.get("interpolation", "bicubic"))
    if len(set(ways.values())) > 1:
        raise ValueError(f"weights is None, but those of {name} want their images differently; accepted: one of {', '.join(ways)}")
    if not ways:  # a tower without published weights: as CLIP
        return open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, "shortest", "bicubic"
    return next(iter(ways.values()))


def _check_weights(name: str, weights: str | None) -> list[str]:
    import open_clip

    tags: list[str] = open_clip.list_pretrained_tags_by_model(name)
    if weights is not None and weights not in tags:
        raise ValueError(f"weights are {weights!r}; accepted of {name}: {', '.join(tags) or 'none'}")
    return tags
