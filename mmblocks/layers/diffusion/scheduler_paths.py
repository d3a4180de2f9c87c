"""What the networks of diffusers were trained with, as far as the config of their scheduler says it."""

from collections.abc import Mapping
from typing import Any, Literal

from mmblocks.layers.diffusion.noise_paths import DiffusionPath, FlowPath
from mmblocks.layers.diffusion.noise_schedules import Schedule

_SCHEDULES: dict[str, Schedule] = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
"""Under diffusers' names."""

_PREDICTIONS: dict[str, Literal["noise", "velocity"]] = {"epsilon": "noise", "v_prediction": "velocity"}


def path_of_scheduler(name: str, config: Mapping[str, Any]) -> DiffusionPath | FlowPath:
    """The path that a scheduler of diffusers goes back on.

    Times of a flow are distributed as the sigmoid of a normal variable. Where a scheduler shifts them by the size of the image, the
    path does not: see the argument of the same name of ``FlowPath``.

    Args:
        name: of the class.
        config: all its settings, defaults included.

    Raises:
        ValueError: a scheduler of another kind, betas that were given one by one, or a prediction of neither noise nor velocity.

    Examples:
        >>> from mmblocks.layers import DiffusersSampler
        >>> from mmblocks.layers.diffusion.scheduler_paths import path_of_scheduler
        >>> sampler = DiffusersSampler(scheduler="DDIMScheduler", options={"prediction_type": "v_prediction"})
        >>> path_of_scheduler(sampler.scheduler, sampler.settings).prediction
        'velocity'
    """
    prediction = config.get("prediction_type")
    if prediction == "flow_prediction" or (prediction is None and name.startswith("FlowMatch")):
        if config.get("invert_sigmas"):
            raise ValueError(f"{name} has invert_sigmas; accepted: without it")
        shift = 1.0 if config.get("use_dynamic_shifting") else config.get("flow_shift", config.get("shift", 1.0))
        return FlowPath(num_times=config["num_train_timesteps"], shift=float(shift))
    schedule = config.get("beta_schedule")
    if prediction not in _PREDICTIONS or schedule not in _SCHEDULES or config.get("trained_betas") is not None:
        found = f"prediction_type {prediction!r}, beta_schedule {schedule!r}"
        accepted = f"{', '.join(_PREDICTIONS)} or flow_prediction, {', '.join(_SCHEDULES)} and no trained_betas"
        raise ValueError(f"{name} has {found}, which says no path; accepted: {accepted}, or a path of your own")
    count = config["num_train_timesteps"]
    unit = count / 1000 if schedule == "linear" else 1.0  # of which DiffusionPath stretches the betas of other counts
    return DiffusionPath(
        num_times=count,
        schedule=_SCHEDULES[schedule],
        beta_start=config["beta_start"] * unit,
        beta_end=config["beta_end"] * unit,
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr")),
        prediction=_PREDICTIONS[prediction],
    )
