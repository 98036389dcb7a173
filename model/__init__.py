"""Networks: tensors in, tensors out. No file, flag, class name or print lives here."""


def build_model(config: dict):
    """The network that a plain config dict (from a checkpoint or from flags) describes; config["model"] names it.

    Raises ValueError for a name or a field that is not known.
    """
    from model.config import MODELS
    name = config.get("model", "fcos")
    if name not in MODELS:
        raise ValueError(f"model config: model is {name!r}, not one of {', '.join(MODELS)}")
    return MODELS[name].from_dict(config).build()


def load_model(config: dict, state_dict: dict, device="cpu"):
    """The network of a checkpoint (its "config" and "model"), ready to detect on `device`; weights are channels_last."""
    import torch
    network = build_model(config)
    network.load_state_dict(state_dict)
    return network.to(device=device, memory_format=torch.channels_last).eval()
